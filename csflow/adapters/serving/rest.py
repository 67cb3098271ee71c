"""The REST server: the routes on sockets that are bound already, behind limits on bodies and connections."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from kserve.errors import InvalidInput
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from csflow.adapters.serving.access import Access, accounted
from csflow.adapters.serving.authentication import Authentication
from csflow.adapters.serving.body_limit import App, BodyBudget, BodyLimit, Message, Receive, Send
from csflow.adapters.serving.connections import REFUSED, GuardedProtocol
from csflow.adapters.serving.documentation import add_documentation
from csflow.adapters.serving.errors import AbandonedError, RequestError, ScoringError, as_request_error
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.replies import json_response, refusal
from csflow.adapters.serving.routes import Routes
from csflow.adapters.serving.tokens import Tokens
from csflow.errors import DataError

_logger = logging.getLogger("csflow.serving")

GRACE_SECONDS = 15
"""Time that requests in flight have when the server is asked to stop."""

_TLS_GOODBYE_SECONDS = 2.0
"""Time for a client to confirm the end of an encrypted connection; asyncio would wait 30 s, also when it stops."""

_HEADERS = [("x-content-type-options", "nosniff"), ("cache-control", "no-store")]
"""Browsers run nothing of an answer, and nobody keeps one. No header lets pages of other sites read answers."""

_SCORING = re.compile(r"/v1/models/[^/]+:predict|/v2/models/[^/]+(/versions/[^/]+)?/infer")


class RestServer(uvicorn.Server):
    """A server of the REST routes; whoever starts it handles signals.

    Args:
        app: See :func:`application`.
        context: Certificate and key for encrypted connections; ``None`` for plain ones.
        protocol: Guards a connection.
    """

    def __init__(
        self, app: App, context: ssl.SSLContext | None = None, protocol: type[GuardedProtocol] = GuardedProtocol
    ) -> None:
        self._context, self._guard = context, protocol
        self._beginning: list[tuple[float, GuardedProtocol]] = []
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=_HEADERS,
                timeout_keep_alive=int(protocol.limits.idle_seconds),
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn itself would give a client 60 s for the handshake of TLS."""
        await self.lifespan.startup()
        handshake, goodbye = self._guard.limits.head_seconds, _TLS_GOODBYE_SECONDS
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._protocol,
                sock=listener,
                backlog=self.config.backlog,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else handshake,
                ssl_shutdown_timeout=None if self._context is None else goodbye,
            )
            for listener in sockets or []
        ]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        made = self._guard(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        if self._context is not None:
            self._count(made)
        return made

    def _count(self, made: GuardedProtocol) -> None:
        """Drop a connection if too many others are in their handshake: each has a buffer of 256 KiB.

        asyncio reports no handshake that fails, so that each counts until it succeeds or its time is over.

        Raises:
            ConnectionRefusedError: If there are too many; asyncio then closes the socket.
        """
        limits, now = self._guard.limits, asyncio.get_running_loop().time()
        if len(self._beginning) >= limits.connections:
            self._beginning = [
                (until, each) for until, each in self._beginning if until > now and each.transport is None
            ]
            if len(self._beginning) >= limits.connections:
                raise ConnectionRefusedError("Too many connections have not finished their handshake.")
        self._beginning.append((now + limits.head_seconds, made))

    async def serve_on(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until :attr:`should_exit` is set and the requests in flight are answered."""
        await self.serve(sockets=list(listeners))


class Accounting:
    """ASGI middleware that accounts for every request and names it in the response.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        access = Access.of("rest", scope["method"], path, headers, scoring=_SCORING.fullmatch(path) is not None)
        status = "499"

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", access.id.encode())]
            await send(message)

        with accounted(access):
            try:
                await self._app(scope, receive, named)
            finally:
                if refused := scope.get("state", {}).get(REFUSED):
                    access.outcome, status = "refused", refused
                access.end(status)


def application(plane: Plane, budget: BodyBudget, *, tokens: Tokens | None = None, documented: bool = False) -> App:
    """Make the application: routes, limit of bodies, and a JSON response for every error.

    Args:
        plane: The lines.
        budget: What bodies may take.
        tokens: Those of the clients that are let in; ``None`` for all clients.
        documented: True to describe the routes at ``/docs``.
    """
    app = FastAPI(
        title="csflow",
        version=version("csflow"),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    Routes(plane).add_to(app)
    if documented:
        add_documentation(app, tokens=tokens is not None)
    for kind in (RequestError, DataError, InvalidInput, ClientDisconnect):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)
    app.add_middleware(BodyLimit, budget=budget)
    return Accounting(app if tokens is None else Authentication(app, tokens))


async def _refuse(_: Request, error: Exception) -> Response:
    gone = isinstance(error, ClientDisconnect)
    typed = AbandonedError("The client has gone.") if gone else as_request_error(error)
    assert typed is not None
    return refusal(typed)


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.headers, error.status_code)


async def _fail(request: Request, error: Exception) -> Response:
    _logger.error("%s: %r", request.url.path, error)
    return refusal(ScoringError("The server failed. See its log."))
