"""Turn errors into HTTP responses: a 400 with its reason, a 413 for a body that is too large."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from fastapi import Request

_logger = logging.getLogger("csflow.serving")

MAX_BODY = 64 * 2**20
"""Bytes of one request at most, over REST and gRPC."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """ASGI middleware that responds with 413 to a body above ``limit`` bytes, declared or streamed.

    Args:
        app: The application to protect.
        limit: Largest body in bytes.
    """

    def __init__(self, app: App, limit: int = MAX_BODY) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await JSONResponse({"error": self._reason()}, status_code=413)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(413, self._reason())
            return message

        await self._app(scope, counted, send)

    def _reason(self) -> str:
        return f"The request is larger than {self._limit} bytes. Send fewer or smaller images at a time."


async def refuse_invalid_input(request: Request, error: Exception) -> JSONResponse:
    """Respond with 400 and log one line; a client's mistake is no reason for a traceback."""
    _logger.info("%s: refused: %s", request.url.path, error)
    return JSONResponse({"error": str(error)}, status_code=400)


async def refuse_invalid_body(_: Request, error: Exception) -> JSONResponse:
    """Respond with 400 and the reason where FastAPI would respond with 422 and a structure of its own."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    # FastAPI accepts a body of bytes as well; the complaint that it is not bytes helps nobody.
    chosen = [problem for problem in problems if problem.get("type") != "bytes_type"] or problems
    reasons = [f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in chosen]
    return JSONResponse({"error": "; ".join(reasons[:5]) or str(error)}, status_code=400)


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Respond to any other HTTP error in the same JSON structure."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)
