"""HTTP as strangers speak it: each complete request gets one answer, and what is no HTTP a refusal."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.csflow.adapters.serving.corpus import GOOD
from tests.csflow.adapters.serving.strangers import Watch, exchanged, framed
from tests.csflow.adapters.serving.test_server import HOST, V1, V2, Server, post, server

__all__ = ["server"]  # a fixture

BODY = json.dumps({"instances": [GOOD]}).encode()
POST = f"POST {V1} HTTP/1.1\r\nHost: x\r\n".encode()
LIVE = framed("/v2/health/live", b"", method="GET")
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED, CLOSED = [400], True


@pytest.fixture(scope="module")
def watch(server: Server) -> Iterator[Watch]:
    """A watch over the server, which must be as before when all is over."""
    watching = Watch(server)
    yield watching
    watching.check()


WIRE: dict[str, tuple[bytes, list[int], bool]] = {
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + LIVE, REFUSED, CLOSED),
    "two lengths in one": (POST + b"Content-Length: 2, 40\r\n\r\n{}" + LIVE, REFUSED, CLOSED),
    "length and chunks": (POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LIVE,
                          REFUSED, CLOSED),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n" + LIVE,
                          REFUSED, CLOSED),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + LIVE, REFUSED, CLOSED),
    "unknown transfer": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + LIVE, REFUSED, CLOSED),
    "length negative": (POST + b"Content-Length: -2\r\n\r\n{}", REFUSED, CLOSED),
    "length with sign": (POST + b"Content-Length: +2\r\n\r\n{}", REFUSED, CLOSED),
    "length hexadecimal": (POST + b"Content-Length: 0x2\r\n\r\n{}", REFUSED, CLOSED),
    "length beyond all": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}", REFUSED, CLOSED),
    "length of a gigabyte": (POST + b"Content-Length: 1000000000\r\n\r\n{}", [413], False),
    "space before colon": (POST + b"Content-Length : 2\r\n\r\n{}", REFUSED, CLOSED),
    "folded header": (POST + b"A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}", REFUSED, CLOSED),
    "bare line feeds": (b"GET /v2/health/live HTTP/1.1\nHost: x\n\n", REFUSED, CLOSED),
    "NUL in a header": (POST + b"A: \0\r\nContent-Length: 2\r\n\r\n{}", REFUSED, CLOSED),
    "header name of 10 kB": (POST + b"a" * 10_000 + b": b\r\nContent-Length: 2\r\n\r\n{}", REFUSED, False),
    "header without name": (POST + b": b\r\nContent-Length: 2\r\n\r\n{}", REFUSED, CLOSED),
    "chunk of no size": (CHUNKED + b"\r\n{}\r\n0\r\n\r\n", REFUSED, CLOSED),
    "chunk of size zz": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", REFUSED, CLOSED),
    "chunk beyond all": (CHUNKED + b"f" * 30 + b"\r\n{}\r\n0\r\n\r\n", REFUSED, CLOSED),
    "chunk longer than said": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n", REFUSED, CLOSED),
    "unknown method": (b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED, CLOSED),
    "method in small letters": (b"get /v2 HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED, CLOSED),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", REFUSED, CLOSED),
    "HTTP/9": (b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n", REFUSED, CLOSED),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), REFUSED, CLOSED),
    "NULs": (bytes(100), REFUSED, CLOSED),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", REFUSED, CLOSED),
    "redis": (b"*1\r\n$4\r\nPING\r\n", REFUSED, CLOSED),
    "tunnel": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", REFUSED, CLOSED),
    "another host": (b"GET http://example.org/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n", [200], False),
    "broken host": (b"GET http://[/v2 HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED, CLOSED),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404], False),
    "dots": (framed("/v2/models/../../etc/passwd", b"", method="GET"), [404], False),
    "encoded dots": (framed("/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", b"", method="GET"), [404], False),
    "encoded NUL": (framed("/v2/models/tiles%00", b"", method="GET"), [404], False),
    "encoded surrogate": (framed("/v2/models/%ed%a0%80", b"", method="GET"), [404], False),
    "encoded line break": (framed("/v2/models/%0d%0aX: y", b"", method="GET").replace(b"X: y", b"X:y"), [404], False),
    "half an encoding": (framed("/v2/models/%f", b"", method="GET"), [404], False),
    "address of 10 kB": (framed("/" + "a" * 10_000, b"", method="GET"), [404], False),
    "address of 60 kB": (framed("/" + "a" * 60_000, b"", method="GET"), [431], CLOSED),
    "HEAD": (framed("/v2/health/live", b"", method="HEAD"), [200], False),
    "DELETE": (framed("/v2/models/tiles", b"", method="DELETE"), [405], False),
    "TRACE": (framed("/v2", b"", method="TRACE"), [405], False),
    "websocket": (framed("/v2", b"", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", method="GET"), [200], False),
    "h2c": (framed("/v2", b"", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", method="GET"), [200], False),
    "HTTP/1.0": (b"GET /v2/health/live HTTP/1.0\r\n\r\n", [200], CLOSED),
    "pipeline": (LIVE * 3 + framed(V1, BODY) + LIVE, [200] * 5, False),
    "pipeline with a mistake": (LIVE + framed(V1, b"{") + LIVE, [200, 400, 200], False),
    "GET with a body": (framed("/v2/health/live", b"x" * 100_000, method="GET") + LIVE, [200, 200], False),
    "blank lines before": (b"\r\n\r\n" + LIVE, [200], False),
    "version of metrics": (framed("/metrics", b"", "Accept: application/openmetrics-text; version=abc", method="GET"),
                           [200], False),
    "no version of metrics": (framed("/metrics", b"", "Accept: application/openmetrics-text; version=", method="GET"),
                              [200], False),
    "expectation": (framed(V1, BODY, "Expect: 100-continue"), [200], False),
    "other expectation": (framed(V1, BODY, "Expect: the unexpected"), [200], False),
}  # fmt: skip
"""Bytes, the statuses of the answers, and True if the connection must end after them."""


@pytest.mark.parametrize("what", list(WIRE))
def test_each_request_has_one_answer(watch: Watch, what: str) -> None:
    sent, statuses, closed = WIRE[what]
    (exchange,) = exchanged(watch.server.port, [[sent]], watch.patience())
    assert not exchange.complaint(watch.patience())
    assert [reply.status for reply in exchange.replies] == statuses
    assert exchange.closed >= closed


def test_a_body_may_come_in_any_pieces(watch: Watch) -> None:
    half = len(BODY) // 2
    chunks = b"%x;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nAfter: 1\r\n\r\n" % (half, BODY[:half], len(BODY) - half, BODY[half:])
    for whole in (CHUNKED + chunks, framed(V1, BODY)):
        cuts = range(1, len(whole), max(1, len(whole) // 40))
        found = exchanged(watch.server.port, [[whole[:cut], whole[cut:]] for cut in cuts], 4 * watch.patience())
        assert [[reply.status for reply in each.replies] for each in found] == [[200]] * len(cuts)
    letters = [bytes([letter]) for letter in framed("/v2/models/tiles", b"", method="GET")]
    (one,) = exchanged(watch.server.port, [letters], watch.patience())
    assert [reply.status for reply in one.replies] == [200]


TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [GOOD]}
EVENT = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
OF_EVENT = {"Content-Type": "application/cloudevents+json"}
NESTED = (json.dumps(EVENT)[:-1] + ',"data":' + "[" * 600 + "]" * 600 + "}").encode()
MISTAKES: dict[str, tuple[str, object, dict[str, str], str]] = {
    "no pixels": (V2, {"inputs": [TENSOR | {"shape": [0, 5, 3], "datatype": "UINT8", "data": []}]}, {}, "the shape"),
    "no rows": (V2, {"inputs": [TENSOR | {"shape": [2, 0, 5, 3], "datatype": "UINT8", "data": []}]}, {}, "the shape"),
    "side below zero": (V2, {"inputs": [TENSOR | {"shape": [-1, -1]}]}, {}, "shape"),
    "fraction": (V2, {"inputs": [TENSOR | {"datatype": "UINT8", "data": [0.5]}]}, {}, "whole number"),
    "ragged": (V2, {"inputs": [TENSOR | {"datatype": "UINT8", "data": [[1], 2]}]}, {}, "depths"),
    "long id": (V2, {"id": "x" * 201, "inputs": [TENSOR]}, {}, "'id'"),
    "id that is a list": (V2, {"id": [1], "inputs": [TENSOR]}, {}, "'id'"),
    "switch": (V2, {"inputs": [TENSOR], "parameters": {"binary_data_output": "no"}}, {}, "binary_data_output"),
    "switch of an output": (V2, {"inputs": [TENSOR], "outputs": [{"name": "score", "parameters": {"binary_data": 1}}]},
                            {}, "binary_data"),
    "event not in ASCII": (V1, EVENT | {"data_base64": "é"}, OF_EVENT, "not base64"),
    "event nested deeply": (V1, NESTED, OF_EVENT, "nested"),
    "lone surrogate": (V1, b'{"instances":["\\ud800"]}', {}, "not JSON"),
    "time that is none": (V1, {"instances": [GOOD]}, {"X-Request-Timeout": "nan"}, "x-request-timeout"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(MISTAKES))
def test_a_mistake_is_named(watch: Watch, what: str) -> None:
    path, body, headers, reason = MISTAKES[what]
    status, answer = post(watch.server.connect(), path, body, headers)
    assert status == 400, answer
    assert reason in str(answer["error"])


def test_what_is_announced_and_never_sent_keeps_nobody_out(watch: Watch) -> None:
    announced = [socket.create_connection((HOST, watch.server.port)) for _ in range(20)]
    for connection in announced:
        connection.sendall(POST + b"Content-Length: 60000000\r\n\r\n{")
    time.sleep(0.3)
    assert watch.score()
    for connection in announced:
        connection.close()


def test_strangers_at_the_wrong_door_harm_nobody(watch: Watch) -> None:
    """HTTP at the port of gRPC, and gRPC at the port of HTTP."""
    frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    for sent in (
        LIVE,
        framed(V1, BODY),
        bytes(1000),
        frames + b"\xff" * 100,
        frames + b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",
    ):
        with socket.create_connection((HOST, watch.server.grpc_port), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):
                pass
    (exchange,) = exchanged(watch.server.port, [[frames]], watch.patience())
    assert [reply.status for reply in exchange.replies] == [400]
