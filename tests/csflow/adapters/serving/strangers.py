"""A client without manners, and what must hold whatever it sends.

h11 says independently of the server's own parser which requests in a stream of bytes are complete: each of them gets
an answer. All else may be refused, or waits for more.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import h11
import psutil
from h11._util import RemoteProtocolError

from tests.csflow.adapters.serving.test_server import HOST, IMAGES, V1, Server, b64, post

SECOND = 1.0
"""Within which everything is answered on an idle machine, where a plain request takes at most 40 ms."""

PLAIN_REQUESTS = 25
"""How many plain requests long an answer may take on a busy machine."""

QUIET = 0.03
"""Seconds after which a connection is taken to say nothing more, where nothing must be said."""

ALLOWED = frozenset({200, 307, 400, 404, 405, 408, 411, 413, 415, 431, 503, 504})
"""Statuses of answers. 503 and 504 say that there is too much to do, or too little time."""


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    body: bytes

    def complaint(self) -> str:
        """Say what is wrong with it, if anything."""
        if self.status not in ALLOWED:
            return f"status {self.status}: {self.body[:300]!r}"
        if self.status < 400 or not self.body:
            return ""
        try:
            answer = json.loads(self.body)
        except ValueError:
            return f"a refusal that is not JSON: {self.body[:300]!r}"
        if not isinstance(answer, dict) or not isinstance(answer.get("error", answer.get("detail")), str):
            return f"a refusal without reason: {self.body[:300]!r}"
        return f"a stranger's text is repeated at length: {len(self.body)} bytes" if len(self.body) > 2000 else ""


@dataclass(frozen=True)
class Exchange:
    """What was sent on a connection, and what came of it."""

    sent: tuple[bytes, ...]
    methods: tuple[str, ...]
    replies: tuple[Reply, ...]
    left: bytes
    closed: bool
    seconds: float

    def complaint(self, patience: float) -> str:
        """Say what is wrong, if anything, with the bytes with which it happens again."""
        why = next((found for reply in self.replies if (found := reply.complaint())), "")
        if not why and self.left:
            why = f"half an answer: {self.left[:300]!r}"
        missing = len(self.replies) < len(self.methods) and not (self.closed and self.replies)
        if not why and missing:
            why = f"{len(self.replies)} answers to {len(self.methods)} requests, connection closed: {self.closed}"
        if not why and self.closed and not self.replies and any(self.sent):
            why = "closed without a word"
        if not why and self.methods and self.seconds > patience * len(self.methods):
            why = f"{self.seconds:.2f} s, expected {patience:.2f}"
        if not why:
            return ""
        pieces = [base64.b64encode(piece if len(piece) < 100_000 else piece[:1000]).decode() for piece in self.sent]
        return f"{why}\nsent in base64, piece by piece: {pieces}"


def complete_requests(content: bytes) -> list[str]:
    """Return the methods of the requests in a stream of bytes that are complete."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(content)
    methods: list[str] = []
    method = ""
    with suppress(RemoteProtocolError, h11.LocalProtocolError):
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                method = event.method.decode()
            elif isinstance(event, h11.EndOfMessage):
                methods.append(method)
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                break
    return methods


def replies_of(received: bytes, methods: Sequence[str]) -> tuple[list[Reply], bytes]:
    """Read final responses; return them and what is left of the bytes."""
    replies: list[Reply] = []
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status < 200:
            received = rest
            continue
        fields = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n"))
        method = methods[len(replies)] if len(replies) < len(methods) else "GET"
        size = 0 if method == "HEAD" or status in (204, 304) else int(fields["content-length"])
        if len(rest) < size:
            break
        replies.append(Reply(status, rest[:size]))
        received = rest[size:]
    return replies, received


async def _exchanged(port: int, pieces: Sequence[bytes], patience: float, leave: bool) -> Exchange:
    methods = complete_requests(b"".join(pieces))
    began, received, closed = time.monotonic(), b"", False
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(0.001)
            writer.write(piece)
            await writer.drain()
        replies: list[Reply] = []
        left = b""
        while not leave:
            missing = len(replies) < len(methods)
            more = await asyncio.wait_for(reader.read(2**16), 4 * patience if missing or left else QUIET)
            closed = not more
            received += more
            replies, left = replies_of(received, methods)
            if closed:
                break
    except (TimeoutError, ConnectionError) as error:
        closed = closed or isinstance(error, ConnectionError)
        replies, left = replies_of(received, methods)
    seconds = time.monotonic() - began
    if leave:
        writer.transport.abort()
        return Exchange(tuple(pieces), (), (), b"", False, 0.0)
    writer.close()
    return Exchange(tuple(pieces), tuple(methods), tuple(replies), left, closed, seconds)


def exchanged(
    port: int, connections: Sequence[Sequence[bytes]], patience: float, *, leave: bool = False
) -> list[Exchange]:
    """Open connections at once, send each its pieces, and return what came of it.

    Args:
        port: Of the server.
        connections: The pieces of each connection.
        patience: Seconds that an answer may take.
        leave: True to abort each connection as soon as everything is sent.
    """

    async def all_of_them() -> list[Exchange]:
        return list(await asyncio.gather(*(_exchanged(port, each, patience, leave) for each in connections)))

    return asyncio.run(all_of_them())


def framed(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """Return the bytes of a right HTTP request."""
    lines = (f"{method} {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode("latin-1") + body


_PROBE = """
import http.client, select, sys, time
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
slowest = 0.0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    connection.request("GET", "/v2/health/live")
    assert connection.getresponse().read() == b'{"live":true}'
    slowest = max(slowest, time.monotonic() - began)
print(slowest)
"""
"""A process of its own, because threads of one that is busy wait for each other."""


@dataclass
class Watch:
    """Watches a server while strangers call: a probe all the time, its memory, its log and its scores."""

    server: Server

    def __post_init__(self) -> None:
        self.process = psutil.Process(self.server.process.pid)
        self._log_from = self.server.log.stat().st_size
        self._before = self.score()
        command = [sys.executable, "-c", _PROBE, HOST, str(self.server.port)]
        self._probe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def score(self) -> object:
        """Score a good image."""
        status, answer = post(self.server.connect(), V1, {"instances": [b64(IMAGES[1])]})
        assert status == 200
        return answer

    def patience(self) -> float:
        """Return the seconds that an answer may take now: one, or as many plain requests as that is when idle."""
        taken = []
        for _ in range(3):
            began = time.monotonic()
            self.score()
            taken.append(time.monotonic() - began)
        return max(SECOND, PLAIN_REQUESTS * statistics.median(taken))

    def memory(self) -> int:
        """Return the bytes that the process has in memory."""
        return int(self.process.memory_info().rss)

    def check(self, patience: float = 0.0) -> None:
        """Check that nothing has suffered; a probe may have waited ``patience`` seconds, if that is more than usual."""
        slowest = float(self._probe.communicate("")[0])
        patience = max(patience, self.patience())
        assert self.server.process.poll() is None, "the process has ended"
        with self.server.log.open("rb") as log:
            log.seek(self._log_from)
            written = log.read().decode(errors="replace")
        told = [line[:500] for line in written.splitlines() if "Traceback" in line or " ERROR " in line]
        assert not told, f"a stranger's mistake is nobody's duty: {told[:5]}"
        assert slowest < patience, f"a probe waited {slowest:.2f} s, expected {patience:.2f}"
        assert self.score() == self._before, "a good image has another score than before"
