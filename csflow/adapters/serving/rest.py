"""The REST server: the routes on sockets that are bound already, behind limits on bodies and connections."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from kserve.errors import InferenceError, InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from csflow.adapters.serving.bodies import UnknownEncodingError
from csflow.adapters.serving.body_limit import BodyLimit
from csflow.adapters.serving.connections import GuardedProtocol
from csflow.adapters.serving.data_plane import DetectorDataPlane
from csflow.adapters.serving.routes import Routes, json_response

_logger = logging.getLogger("csflow.serving")

GRACE_SECONDS = 15
"""Time that requests in flight have when the server is asked to stop."""

_STATUS: dict[type[Exception], int] = {
    InvalidInput: 400,
    ModelNotFound: 404,
    UnknownEncodingError: 415,
    ClientDisconnect: 499,  # for the log: nobody receives it
    InferenceError: 500,
    ModelNotReady: 503,
    ServerNotReady: 503,
}


class RestServer(uvicorn.Server):
    """A server of the REST routes; whoever starts it handles signals.

    Args:
        plane: The models.
        documented: True to describe the routes at ``/docs``.
    """

    def __init__(self, plane: DetectorDataPlane, *, documented: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                application(plane, documented=documented),
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=int(GuardedProtocol.limits.idle_seconds),
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve_on(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until :attr:`should_exit` is set and the requests in flight are answered."""
        await self.serve(sockets=list(listeners))


def application(plane: DetectorDataPlane, *, documented: bool = False) -> FastAPI:
    """Make the application: routes, limit of bodies, and a JSON response for every error."""
    docs = "/docs" if documented else None
    app = FastAPI(title="csflow", docs_url=docs, redoc_url=None, openapi_url="/openapi.json" if documented else None)
    Routes(plane).add_to(app)
    for kind in _STATUS:
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(BodyLimit)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    status = next(status for kind in type(error).__mro__ if (status := _STATUS.get(kind)))
    if status < 500:  # a client's mistake is no reason for more than a line
        _logger.info("%s: %d: %s", request.url.path, status, error)
    return json_response({"error": str(error)}, status=status)


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.headers, error.status_code)


async def _fail(request: Request, error: Exception) -> Response:
    _logger.error("%s: %r", request.url.path, error)
    return json_response({"error": "The server failed. See its log."}, status=500)
