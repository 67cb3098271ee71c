"""A small HTTP/1.1 client for asyncio that keeps its connection, because a general one costs more than some servers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Self

from servers.running import HOST

ANSWER_SECONDS = 600


@dataclass(frozen=True)
class Request:
    """A request, encoded once and sent often.

    Attributes:
        method: GET or POST.
        path: In the address.
        body: As sent.
        headers: Besides host and length.
    """

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """Return the bytes to send."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Connection:
    """A connection to a server, opened again after it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, encoded: bytes) -> None:
        """Send a request without waiting for its answer."""
        await self._open()
        assert self._writer is not None
        self._writer.write(encoded)
        await self._writer.drain()

    async def ask(self, encoded: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and body of the answer.

        Raises:
            OSError: If the server ends the connection instead, or takes too long.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._open()
                assert self._writer is not None
                self._writer.write(encoded)  # a server may answer before it has read everything
                return await self._answer()
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionResetError("closed without an answer") from error
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _open(self) -> None:
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port, limit=2**20)

    async def _answer(self) -> tuple[int, bytes]:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if b"content-length" not in fields:
            raise ConnectionResetError(f"an answer without length: {head[:200]!r}")
        body = await self._reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"connection") == b"close":
            self.close()
        return status, body
