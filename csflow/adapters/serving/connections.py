"""Guard the connections of the REST server: bounded headers, time limits, and no waiting for acknowledgements.

uvicorn has no limit on the size of a header block with its fast parser, and waits for ever for a client that connects
and says nothing, or half of something. Its sockets also wait for acknowledgements (Nagle's algorithm) if the listening
socket was bound without naming TCP, because asyncio switches that off only for sockets that say they are TCP.
"""

from __future__ import annotations

import json
import socket
from asyncio import TimerHandle, Transport
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from csflow.adapters.serving.access import Access

REFUSED = "refused"
"""Key of a request's state: the status that the client got although the application may respond with another."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What a client may take, in bytes and seconds.

    Attributes:
        head_bytes: Request line and headers together.
        headers: Number of headers.
        connections: Connections at once.
        head_seconds: From a request's first byte to the end of its headers.
        idle_seconds: Without a request: after connecting, and after each response.
        pause_seconds: Between two pieces of a body.
        body_seconds: For a whole body.
        last_seconds: For the rest of a request that is being sent when the server is asked to stop.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    connections: int = 1000
    head_seconds: float = 10.0
    idle_seconds: float = 65.0
    pause_seconds: float = 10.0
    body_seconds: float = 120.0
    last_seconds: float = 5.0


class GuardedProtocol(HttpToolsProtocol):
    """A connection that ends when its client takes too much or too long, with a status that says so."""

    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._timer: TimerHandle | None = None
        self._body_until = 0.0
        self._head_bytes = 0
        self._heading = self._receiving = self._last = self._refused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        if (opened := transport.get_extra_info("socket")) is not None:
            with suppress(OSError):  # a Unix socket has no such option
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections. Try again later.")
            return
        self._wait(self.limits.idle_seconds)

    def data_received(self, data: bytes) -> None:
        """Read on, and stop at what is too much."""
        fresh = not (self._heading or self._receiving)
        if fresh:
            self._wait(self.limits.head_seconds)
        super().data_received(data)
        if self._heading:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse_head()
        elif self._receiving:
            self._wait(min(self.limits.pause_seconds, self._body_until - self.loop.time()))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._heading, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Check the headers before anything is done for the request."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes or len(self.headers) > self.limits.headers:
            self._refuse_head()
        self._heading = False
        if self._refused:
            raise ValueError("refused")  # the parser stops
        seconds = self.limits.last_seconds if self._last else self.limits.body_seconds
        self._receiving, self._body_until = True, self.loop.time() + seconds
        self._wait(self.limits.pause_seconds)
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Wait no longer for the client; the server's own work has no limit here."""
        self._receiving = False
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, unless the connection was refused for another reason."""
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def shutdown(self) -> None:
        """End the connection after its response; a request that is still being sent has little time left for it."""
        if self._heading or self._receiving:
            self._body_until = min(self._body_until, self.loop.time() + self.limits.last_seconds)
            self._wait(self.limits.last_seconds)
            self._last = True
        if self._receiving or not self._heading:
            super().shutdown()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(max(0.0, seconds), self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if self._heading or self._receiving:
            what = "headers" if self._heading else "body"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request's {what} took too long.")
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        limits = self.limits
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"The headers are larger than {limits.head_bytes} bytes, or more than {limits.headers}.",
        )

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Respond without the application, if no response has begun, and close."""
        self._stop_waiting()
        self._refused = True
        if self.transport.is_closing():
            return
        before = self.cycle if self._heading and self.cycle is not None else None
        if before is not None and not before.response_complete:  # an earlier request of a pipeline is answered first
            before.keep_alive = False
            self.flow.pause_reading()
            return
        if self._heading or self.cycle is None or (self.cycle.response_complete and not self._receiving):
            Access.of("rest", "", "", {}, scoring=False).end(str(status.value))  # no application knows of it
            self._respond(status, reason)
        elif not self.cycle.response_started:
            self.cycle.scope["state"][REFUSED] = str(status.value)
            self._respond(status, reason)
        self.transport.close()

    def _respond(self, status: HTTPStatus, reason: str) -> None:
        body = json.dumps({"error": reason}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
