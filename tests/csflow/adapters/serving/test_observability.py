"""What an operator sees of a real server: access log, request names, metrics, and a quiet log."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from csflow.adapters.serving import without_arguments
from tests.csflow.adapters.serving.test_server import (
    HOST,
    IMAGES,
    TENSOR,
    V1,
    V2,
    Server,
    b64,
    encoded,
    get,
    packed,
    post,
    server,
)

__all__ = ["server"]  # a fixture

RIGHT = {"instances": [b64(IMAGES[0])]}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(server: Server) -> Samples:
    connection = server.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels, whatever their others are."""
    return sum(
        number for (each, found), number in samples.items() if each == name and labels.items() <= dict(found).items()
    )


class Watched:
    """What has changed of the metrics since."""

    def __init__(self, server: Server) -> None:
        self._server, self._before = server, metrics(server)

    def more(self, name: str, **labels: str) -> float:
        return value(metrics(self._server), name, **labels) - value(self._before, name, **labels)

    def becomes(self, expected: float, name: str, **labels: str) -> bool:
        """True as soon as it is so; what is counted may come a moment after the response."""
        until = time.monotonic() + 5
        while (found := self.more(name, **labels)) != expected:
            if time.monotonic() > until:
                raise AssertionError(f"{name} {labels}: {found}, expected {expected}")
            time.sleep(0.02)
        return True


@pytest.fixture
def watched(server: Server) -> Watched:
    return Watched(server)


class Log:
    """What the server writes from now on."""

    def __init__(self, server: Server) -> None:
        self._file = server.log
        self._offset = server.log.stat().st_size

    def text(self) -> str:
        return self._file.read_bytes()[self._offset :].decode()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def line(self, id: str) -> dict[str, Any]:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if found := [line for line in self.lines() if line["id"] == id]:
                assert len(found) == 1
                return found[0]
            time.sleep(0.02)
        raise AssertionError(self.text())


@pytest.fixture
def log(server: Server) -> Log:
    return Log(server)


@pytest.fixture(scope="module")
def grpc_stub(server: Server) -> Iterator[Any]:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def request(content: bytes = IMAGES[0], name: str = "tiles") -> Any:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    return pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[packed(content)])


# The access log


def test_a_scored_request_is_one_line_of_json(server: Server, log: Log) -> None:
    body = {"instances": [b64(image) for image in IMAGES]}
    status, answer = post(server.connect(), V1, body, {"X-Request-ID": "shift-3/part:17"})
    assert status == 200
    line = log.line("shift-3/part:17")
    decisions = Counter(each["decision"] for each in answer["predictions"])
    expected = {
        "protocol": "rest", "method": "POST", "path": V1, "status": "200", "outcome": "answered", "line": "tiles",
        "version": "7", "images": 3, "decisions": dict(decisions),
    }  # fmt: skip
    assert expected.items() <= line.items()
    assert line["ms"] > line["wait_ms"] >= 0
    for phase in ("decode_ms", "compute_ms", "encode_ms"):
        assert 0 < line[phase] < 3 * line["ms"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


def test_a_refused_request_is_one_line_with_its_outcome(server: Server, log: Log) -> None:
    cases = {
        "bad": (V1, {"instances": ["%%"]}, 400, "tiles"),
        "unknown": ("/v2/models/nothing/infer", {"inputs": [TENSOR]}, 404, None),
        "version": ("/v2/models/tiles/versions/9/infer", {"inputs": [TENSOR]}, 404, None),
    }
    for name, (path, body, status, _) in cases.items():
        assert post(server.connect(), path, body, {"X-Request-ID": name})[0] == status
    for name, (path, _, status, line) in cases.items():
        found = log.line(name)
        assert (found["status"], found["outcome"], found["path"], found.get("line")) == (
            str(status),
            "refused",
            path,
            line,
        )
    connection = server.connect()
    connection.request("PUT", V1, headers={"X-Request-ID": "method"})
    assert connection.getresponse().status == 405
    assert log.line("method")["outcome"] == "refused"


def test_a_grpc_call_is_one_line(grpc_stub: Any, log: Log) -> None:
    grpc_stub.ModelInfer(request(), metadata=[("x-request-id", "call-1")])
    line = log.line("call-1")
    expected = {"protocol": "grpc", "method": "ModelInfer", "status": "OK", "outcome": "answered", "line": "tiles"}
    assert expected.items() <= line.items()
    assert line["compute_ms"] > 0


def test_probes_are_not_logged(server: Server, grpc_stub: Any, log: Log) -> None:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    connection = server.connect()
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/tiles/ready", "/v1/models/tiles", "/v2"):
        assert get(connection, path)[0] == 200
    metrics(server)
    grpc_stub.ServerLive(pb.ServerLiveRequest())
    grpc_stub.ServerReady(pb.ServerReadyRequest())
    grpc_stub.ModelReady(pb.ModelReadyRequest(name="tiles"))
    post(server.connect(), V1, RIGHT, {"X-Request-ID": "after the probes".replace(" ", "-")})
    log.line("after-the-probes")
    assert len(log.lines()) == 1


# Names and traces


@pytest.mark.parametrize("given", ["1", "4bf92f35-77b3-4da6", "a.b:c/d+e=f@g_h", "x" * 128])
def test_a_given_name_comes_back(server: Server, grpc_stub: Any, given: str) -> None:
    connection = server.connect()
    for method, path, body in (("POST", V1, json.dumps(RIGHT)), ("POST", V1, "{"), ("GET", "/nothing", None)):
        connection.request(method, path, body, {"X-Request-ID": given})
        response = connection.getresponse()
        response.read()
        assert response.headers["x-request-id"] == given
    answer, call = grpc_stub.ModelInfer.with_call(request(), metadata=[("x-request-id", given)])
    assert answer.outputs
    assert dict(call.trailing_metadata())["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, '"}', "é", "a\tb"])
def test_another_name_is_replaced(server: Server, given: str) -> None:
    names = set()
    for _ in range(2):
        connection = server.connect()
        connection.request("GET", "/v2/health/live", headers={"X-Request-ID": given.encode("utf-8")})
        names.add(connection.getresponse().headers["x-request-id"])
    assert len(names) == 2
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in names)


def test_a_refused_call_has_its_name_in_the_trailing_metadata(grpc_stub: Any) -> None:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.ModelInfer(request(b"no image"), metadata=[("x-request-id", "refused-1")])
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "refused-1"


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("given", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-will-be-like", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-b7ad6b7169203331-01x", None),
        ("nonsense", None),
    ],
)
def test_the_trace_is_in_the_log(server: Server, log: Log, given: str, trace: str | None) -> None:
    post(server.connect(), V1, RIGHT, {"traceparent": given, "X-Request-ID": "traced"})
    assert log.line("traced").get("trace") == trace


# Every response counts


def raw(server: Server, content: bytes, *, close: bool = False) -> bytes:
    with socket.create_connection((HOST, server.port), timeout=30) as connection:
        with suppress(OSError):
            connection.sendall(content)
        received = b""
        if close:
            return received
        with suppress(OSError):
            while more := connection.recv(65536):
                received += more
        return received


HEAD = b"POST /v1/models/tiles:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
REFUSALS = {
    "400": b"this is not HTTP\r\n\r\n",
    "404": b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "405": b"PUT /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "413": HEAD + b"Content-Length: 1000000000\r\n\r\n",
    "415": HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    "431": b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("status", list(REFUSALS))
def test_every_refusal_counts_once(server: Server, watched: Watched, log: Log, status: str) -> None:
    assert raw(server, REFUSALS[status]).startswith(f"HTTP/1.1 {status} ".encode())
    assert watched.becomes(1, "csflow_responses_total", protocol="rest", status=status)
    assert watched.more("csflow_responses_total", protocol="rest", status="499") == 0
    assert [line["status"] for line in log.lines()] == [status]
    assert "Traceback" not in log.text()


def test_garbage_after_a_response_is_refused_and_counts(server: Server, watched: Watched) -> None:
    with socket.create_connection((HOST, server.port), timeout=30) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b'{"live":true}'):
            received += connection.recv(65536)
        connection.sendall(b"\x16\x03\x01 and so on\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert watched.becomes(1, "csflow_responses_total", protocol="rest", status="400")


def test_grpc_statuses_count(server: Server, grpc_stub: Any, watched: Watched, log: Log) -> None:
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    def code(call: Callable[[], Any]) -> str:
        try:
            call()
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        nothing = channel.unary_unary("/some.Service/Call")
        found = [
            code(lambda: grpc_stub.ModelInfer(request())),
            code(lambda: grpc_stub.ServerLive(pb.ServerLiveRequest())),
            code(lambda: grpc_stub.ModelInfer(request(b"no image"))),
            code(lambda: infer(b"\xff\xff\xff garbage")),
            code(lambda: grpc_stub.ModelInfer(request(name="nothing"))),
            code(lambda: grpc_stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiles"))),
            code(lambda: nothing(b"")),
        ]
    expected = ["OK", "OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNIMPLEMENTED"]
    assert found == expected
    for status, number in Counter(expected).items():
        assert watched.becomes(number, "csflow_responses_total", protocol="grpc", status=status)
    assert "Traceback" not in log.text()
    assert "ERROR" not in log.text()


# Outcomes


def test_outcomes_are_counted(server: Server, watched: Watched) -> None:
    connection = server.connect()
    assert post(connection, V1, RIGHT)[0] == 200
    assert post(connection, V1, {"instances": [b64(b"no image")]})[0] == 400
    assert post(connection, V1, RIGHT, {"X-Request-Timeout": "0"})[0] == 504
    for outcome in ("answered", "refused", "late"):
        assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome=outcome)
    assert watched.more("csflow_responses_total", protocol="rest", status="504") == 1


def test_a_client_that_goes_is_abandoned_not_refused(server: Server, watched: Watched) -> None:
    body = json.dumps({"instances": [b64(encoded(9, (600, 600)))] * 32}).encode()
    head = b"POST " + V1.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw(server, head + body, close=True)
    assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome="abandoned")
    raw(server, head + body[:-10], close=True)  # in the middle of its body
    assert watched.becomes(2, "csflow_requests_total", model_name="tiles", outcome="abandoned")


def test_too_much_at_once_is_overloaded(server: Server, watched: Watched) -> None:
    body = json.dumps({"instances": [b64(encoded(9, (500, 500), "JPEG"))] * 64})
    opened = [server.connect() for _ in range(14)]
    for connection in opened:
        connection.request("POST", V1, body)
    refused = 0
    until = time.monotonic() + 60
    while not refused and time.monotonic() < until:
        refused = int(watched.more("csflow_requests_total", model_name="tiles", outcome="overloaded"))
        waiting = value(metrics(server), "csflow_waiting_images", model_name="tiles")
        assert waiting <= 512
    assert refused
    assert value(metrics(server), "csflow_requests_in_flight", protocol="rest") >= 2
    assert value(metrics(server), "csflow_request_bytes") > 0
    statuses = []
    for connection in opened[::-1]:  # the last ones are those that found the queue full
        connection.sock.settimeout(0.2)
        with suppress(TimeoutError, http.client.HTTPException):
            response = connection.getresponse()
            statuses.append(response.status)
            if response.status == 503:
                assert int(response.headers["retry-after"]) >= 1
        connection.close()
    assert 503 in statuses
    until = time.monotonic() + 10
    while value(metrics(server), "csflow_waiting_images") or value(metrics(server), "csflow_request_bytes"):
        assert time.monotonic() < until, "what clients left behind is still there"
        time.sleep(0.05)


# Gauges and histograms


def test_loaded_detectors_are_counted(server: Server) -> None:
    assert value(metrics(server), "csflow_loaded_detectors") == 2
    waiting = {dict(labels)["model_name"] for name, labels in metrics(server) if name == "csflow_waiting_images"}
    assert waiting == {"tiles", "plain"}


def test_times_scores_and_decisions_are_counted_by_line_and_version(
    server: Server, grpc_stub: Any, watched: Watched
) -> None:
    decided = Counter[str]()
    for image in IMAGES:
        _, body = post(server.connect(), V1, {"instances": [b64(image)]})
        decided.update(each["decision"] for each in body["predictions"])
    grpc_stub.ModelInfer(request())
    tiles = {"model_name": "tiles", "version": "7"}
    assert watched.becomes(3, "csflow_request_seconds_count", **tiles, protocol="rest")
    assert watched.becomes(1, "csflow_request_seconds_count", **tiles, protocol="grpc")
    for phase in ("wait", "decode", "compute", "encode"):
        assert watched.more("csflow_phase_seconds_count", **tiles, phase=phase) == 4
    assert watched.more("csflow_phase_seconds_sum", **tiles, phase="compute") > 0
    assert watched.more("csflow_images_total", **tiles) == 4
    for decision, number in decided.items():
        assert watched.more("csflow_images_total", **tiles, decision=decision) >= number
    assert watched.more("csflow_p_value_count", **tiles) == 4
    assert watched.more("csflow_score_to_threshold_count", **tiles) == 4


def test_a_line_without_calibration_has_no_p_values(server: Server, watched: Watched) -> None:
    post(server.connect(), "/v1/models/plain:predict", RIGHT)
    assert watched.becomes(1, "csflow_images_total", model_name="plain", decision="none")
    assert watched.more("csflow_p_value_count", model_name="plain") == 0


def test_strangers_choose_no_label(server: Server, grpc_stub: Any, watched: Watched) -> None:
    import grpc

    connection = server.connect()
    names = [f"invented-{number}" for number in range(5)]
    known = {name for name, _ in metrics(server)}
    for name in names:
        assert post(connection, f"/v1/models/{name}:predict", RIGHT)[0] == 404
        assert post(connection, f"/v2/models/tiles/versions/{name}/infer", {"inputs": [TENSOR]})[0] == 404
        assert get(connection, f"/{name}")[0] == 404
        connection.request(name.upper(), "/v2")
        with suppress(http.client.HTTPException, OSError):
            connection.getresponse().read()
        connection = server.connect()
        with pytest.raises(grpc.RpcError):
            grpc_stub.ModelInfer(request(name=name))
    assert watched.becomes(15, "csflow_requests_total", model_name="unknown", outcome="refused")
    assert "invented" not in str(metrics(server)).lower()
    assert {name for name, _ in metrics(server)} == known


# The log


def test_no_mistake_of_a_client_is_an_error_of_ours(server: Server, grpc_stub: Any, log: Log) -> None:
    import grpc

    connection = server.connect()
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 0, 4, 3], "data": []}
    for path, body in (
        (V1, b"{"), (V1, {"instances": [b64(IMAGES[0][:-2000])]}), (V2, {"inputs": [tensor]}),
        (V2, {"inputs": [TENSOR | {"shape": [7]}]}), (V2, {"inputs": [TENSOR], "outputs": [{"name": "x"}]}),
    ):  # fmt: skip
        assert post(connection, path, body)[0] == 400
    assert post(connection, V1, RIGHT, {"X-Request-Timeout": "soon"})[0] == 400
    assert post(connection, V1, RIGHT, {"X-Request-Timeout": "0.0001"})[0] == 504
    for content in REFUSALS.values():
        raw(server, content)
    raw(server, HEAD + b"Content-Length: 100\r\n\r\nhalf", close=True)
    raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")
    for wrong in (b"", b"no image", struct.pack("<I", 9)):
        with pytest.raises(grpc.RpcError):
            grpc_stub.ModelInfer(request(wrong))
    with pytest.raises(grpc.RpcError):
        grpc_stub.ModelInfer(request(), timeout=0.0001)
    post(server.connect(), V1, RIGHT, {"X-Request-ID": "the-end"})
    log.line("the-end")
    assert "Traceback" not in log.text()
    assert "ERROR" not in log.text()
    assert "CRITICAL" not in log.text()
