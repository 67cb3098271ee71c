"""What a client may take of a connection: a real server on a socket, with limits short enough to wait for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from csflow.adapters.serving.connections import ConnectionLimits, GuardedProtocol
from csflow.adapters.serving.rest import Accounting, RestServer

LIMITS = ConnectionLimits(
    head_bytes=4096, headers=20, connections=8, head_seconds=0.5, idle_seconds=1.5, pause_seconds=0.7,
    body_seconds=2.0, last_seconds=0.8,
)  # fmt: skip


class Short(GuardedProtocol):
    limits = LIMITS


async def echo(request: Request) -> Response:
    body = await request.body()
    await asyncio.sleep(float(request.query_params.get("work", 0)))
    return PlainTextResponse(str(len(body)))


class Running:
    """A server in a thread of its own."""

    def __init__(self, server: Any, listener: socket.socket) -> None:
        self.server, self.port = server, listener.getsockname()[1]
        self.ended = 0.0
        self.thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self.thread.start()
        while not server.started:
            time.sleep(0.01)

    def _run(self, listener: socket.socket) -> None:
        asyncio.run(self.server.serve(sockets=[listener]))
        self.ended = time.monotonic()

    def connect(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port))
        opened.settimeout(10)
        return opened

    def stop(self) -> None:
        self.server.should_exit = True


@contextmanager
def started() -> Iterator[Running]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"])])
        server = RestServer(Accounting(app), protocol=Short)
        server.config.timeout_graceful_shutdown = 5
        running = Running(server, listener)
        try:
            yield running
        finally:
            running.stop()
            running.thread.join(20)


@pytest.fixture
def running() -> Iterator[Running]:
    with started() as server:
        yield server


def everything(connection: socket.socket) -> tuple[bytes, float]:
    """What the server sends until it closes, and after how many seconds that is."""
    began, received = time.monotonic(), b""
    with suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received, time.monotonic() - began


def test_a_client_that_says_nothing_is_let_go(running: Running) -> None:
    received, seconds = everything(running.connect())
    assert received == b""
    assert 1.0 < seconds < 3.0


def test_a_client_that_stops_in_the_headers_is_told(running: Running) -> None:
    connection = running.connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
    received, seconds = everything(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert seconds < 1.5


def test_headers_that_trickle_have_one_limit_together(running: Running) -> None:
    connection, began = running.connect(), time.monotonic()
    with suppress(OSError):
        for letter in b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100:
            connection.sendall(bytes([letter]))
            time.sleep(0.05)
    assert time.monotonic() - began < 2.5


def test_a_client_that_stops_in_the_body_is_told(running: Running) -> None:
    connection = running.connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    received, seconds = everything(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body took too long" in received
    assert seconds < 2.0


def test_a_body_that_trickles_has_a_limit_as_a_whole(running: Running) -> None:
    connection, began = running.connect(), time.monotonic()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
    with suppress(OSError):
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)
    assert 1.5 < time.monotonic() - began < 4.0


def counted() -> dict[str, float]:
    """Responses by status."""
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    return {each.labels["status"]: each.value for each in samples if each.name == "csflow_responses_total"}


@pytest.mark.parametrize(
    ("status", "content"),
    [
        ("400", b"\x16\x03\x01\r\n\r\n"),
        ("408", b"GET / HTTP/1.1\r\nHost: x\r\nA: "),
        ("408", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"),
        ("431", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 5000 + b"\r\n\r\n"),
    ],
    ids=["no HTTP", "half headers", "half a body", "large headers"],
)
def test_what_is_refused_on_the_wire_counts_once(running: Running, status: str, content: bytes) -> None:
    before = counted()
    connection = running.connect()
    connection.sendall(content)
    assert everything(connection)[0].startswith(f"HTTP/1.1 {status} ".encode())
    time.sleep(0.1)
    assert {each: number - before.get(each, 0) for each, number in counted().items() if number != before.get(each)} == {
        status: 1
    }


@pytest.mark.parametrize(
    "head",
    [
        b"A: " + b"a" * 5000 + b"\r\n",
        b"".join(b"A%d: a\r\n" % number for number in range(30)),
        b"A: " + b"a" * 2**21,  # never ends
        b"a" * 2**21,
    ],
    ids=["one large", "many", "endless", "endless name"],
)
def test_large_headers_are_refused(running: Running, head: bytes) -> None:
    connection = running.connect()
    with suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    received, seconds = everything(connection)
    assert not received or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert seconds < 1.0
    fresh = running.connect()
    fresh.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert everything(fresh)[0].endswith(b"\r\n\r\n0")


def test_a_long_address_is_refused(running: Running) -> None:
    connection = running.connect()
    connection.sendall(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert everything(connection)[0].startswith(b"HTTP/1.1 431 ")


def test_a_refused_request_of_a_pipeline_leaves_the_one_before_it_its_answer(running: Running) -> None:
    connection = running.connect()
    large = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 5000 + b"\r\n\r\n"
    connection.sendall(b"GET /?work=0.3 HTTP/1.1\r\nHost: x\r\n\r\n" + large)
    received, _ = everything(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


def test_more_connections_than_allowed_are_told(running: Running) -> None:
    several = [running.connect() for _ in range(LIMITS.connections)]
    time.sleep(0.2)
    before = counted().get("503", 0)
    assert everything(running.connect())[0].startswith(b"HTTP/1.1 503 ")
    assert counted()["503"] == before + 1
    for connection in several:
        connection.close()
    time.sleep(0.2)
    fresh = running.connect()
    fresh.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert everything(fresh)[0].startswith(b"HTTP/1.1 200 ")


def test_a_request_may_take_longer_than_its_client_may() -> None:
    """The limits are the client's; the server's own work has none here."""
    with started() as running:
        connection = running.connect()
        connection.sendall(b"POST /?work=2.5 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_stopping_waits_for_requests_but_not_for_clients() -> None:
    """A request in work is answered, one that is still being sent soon enough as well; one that never ends is not."""
    with started() as running:
        working, sending, half, silent = (running.connect() for _ in range(4))
        working.sendall(b"GET /?work=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        sending.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
        half.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
        time.sleep(0.3)
        running.stop()
        began = time.monotonic()
        time.sleep(0.3)
        sending.sendall(b"dy")
        assert everything(sending)[0].startswith(b"HTTP/1.1 200 ")
        assert everything(silent)[0] == b""
        assert everything(half)[0].startswith(b"HTTP/1.1 408 ")
        assert everything(working)[0].startswith(b"HTTP/1.1 200 ")
        running.thread.join(20)
        assert running.ended - began < 3.0


def test_no_response_waits_for_an_acknowledgement() -> None:
    """A listening socket whose protocol is 0 makes asyncio leave Nagle's algorithm on: 40 ms a request."""
    with started() as running, running.connect() as connection:
        taken = []
        for _ in range(20):
            began = time.perf_counter()
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b"\r\n\r\n0" not in received:
                received += connection.recv(65536)
            taken.append(time.perf_counter() - began)
        assert sorted(taken)[10] < 0.02


OFFER = (
    b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 13\r\n\r\n"
)


@pytest.mark.parametrize("pause", [False, True])
def test_an_offer_of_another_protocol_costs_no_body(running: Running, pause: bool) -> None:
    """The body is the body, whenever it comes, whatever it contains, and never the next request."""
    body = b"ab\nUpgrade: x"
    with running.connect() as opened:
        for part in (OFFER[:40], OFFER[40:], body) if pause else (OFFER + body,):
            opened.sendall(part)
            time.sleep(0.1)
        answer = b""
        while b"\r\n\r\n1" not in answer:
            more = opened.recv(65536)
            assert more, answer  # it was closed
            answer += more
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n13")


def test_an_offer_behind_another_request_is_refused(running: Running) -> None:
    with running.connect() as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + OFFER + b"GET / HTTP/1.1\r\n\r\n")
        answers, _ = everything(opened)
    assert answers.count(b"HTTP/1.1 ") <= 2
    assert answers.count(b"HTTP/1.1 200") <= 1


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n", b"get / HTTP/1.1\r\n"])
def test_what_is_no_request_is_refused_at_once(running: Running, first: bytes) -> None:
    with running.connect() as opened:
        opened.sendall(first)
        answer, seconds = everything(opened)
    assert answer.startswith(b"HTTP/1.1 400")
    assert seconds < LIMITS.head_seconds
