"""Clients that mean no good, or do not know better: none stops the server or switches a line off."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from csflow.adapters.serving import without_arguments
from tests.csflow.adapters.serving.strangers import PLAIN_REQUESTS
from tests.csflow.adapters.serving.test_server import (
    HOST,
    IMAGES,
    OCTETS,
    TENSOR,
    V1,
    V2,
    Server,
    b64,
    binary,
    get,
    post,
    server,
)

__all__ = ["server"]  # a fixture

SECOND = 1.0
"""Within which every refusal comes."""


@pytest.fixture(autouse=True)
def it_serves_on(server: Server) -> object:
    """Whatever a test sends, the line is scored afterwards as before."""
    before = score(server)
    yield
    assert server.process.poll() is None
    assert score(server) == before


def score(server: Server) -> object:
    status, answer = post(server.connect(), V1, {"instances": [b64(IMAGES[1])]})
    assert status == 200
    return answer


@pytest.mark.parametrize("call", ["load", "unload", "index"])
@pytest.mark.parametrize("path", ["/v2/repository/models/tiles/{}", "/v2/repository/{}", "/v2/models/tiles/{}"])
def test_nobody_changes_what_is_served_over_rest(server: Server, call: str, path: str) -> None:
    connection = server.connect()
    for method in ("POST", "GET", "PUT", "DELETE"):
        connection.request(method, path.format(call), b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status in (404, 405)
        assert "error" in json.loads(response.read())


def test_nobody_changes_what_is_served_over_grpc(server: Server) -> None:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for call, request in (
            (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="tiles")),
            (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="tiles")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert stub.ModelReady(pb.ModelReadyRequest(name="tiles")).ready


NUMBERS = TENSOR | {"datatype": "UINT8"}
MANY = {
    "empty inputs": (V2, b'{"inputs":[' + b"{}," * 350_000 + b"{}]}"),
    "inputs": (V2, json.dumps({"inputs": [TENSOR | {"data": []}] * 9000}).encode()),
    "outputs": (V2, json.dumps({"inputs": [TENSOR], "outputs": [{"name": "score"}] * 9000}).encode()),
    "parameters": (V2, json.dumps({"inputs": [TENSOR], "parameters": {str(n): n for n in range(200_000)}}).encode()),
    "nested": (V2, b'{"inputs":' + b"[" * 1_000_000),
    "nested objects": (V1, b'{"a":' * 1_000_000),
    "instances": (V1, b'{"instances":[' + b'"",' * 1_000_000 + b'""]}'),
    "long numbers": (V1, b'{"instances":[' + b"9" * 4_000_000 + b"]}"),
    "long name": (V2, json.dumps({"inputs": [TENSOR | {"name": "x" * 4_000_000}]}).encode()),
    "long shape": (V2, json.dumps({"inputs": [TENSOR | {"shape": [1] * 1_000_000}]}).encode()),
    "huge shape": (V2, json.dumps({"inputs": [TENSOR | {"shape": [2**62] * 5000}]}).encode()),
    "long id": (V2, json.dumps({"id": "x" * 4_000_000, "inputs": [TENSOR]}).encode()),
    # An array of texts has the longest one's size for each of them.
    "texts among numbers": (V2, json.dumps({"inputs": [NUMBERS | {"data": ["x" * 200_000, *("a" * 1000)]}]}).encode()),
    "texts": (V2, b'{"inputs":[{"data":[' + b'"AA",' * 1_000_000 + b'""]}]}'),
    "pixels": (V2, json.dumps({"inputs": [NUMBERS | {"data": [[1, 2, 3]] * 500_000}]}).encode()),
    "empty images in base64": (V2, json.dumps({"inputs": [TENSOR | {"data": ["AA=="] * 90_000}]}).encode()),
}


@pytest.mark.parametrize("what", list(MANY))
def test_many_of_anything_are_refused_at_once_and_the_rest_goes_on(server: Server, what: str) -> None:
    path, body = MANY[what]
    with nothing_suffers(server):
        status, answer = post(server.connect(), path, body)
    assert status == 400
    assert len(str(answer["error"])) < 1000, "a stranger's text is not repeated at length"


def test_many_images_of_no_bytes_are_refused_at_once(server: Server) -> None:
    tail = bytes(4 * 5_000_000)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    with nothing_suffers(server):
        status, answer = post(server.connect(), V2, *binary({"inputs": [tensor]}, tail))
    assert (status, answer) == (400, {"error": "Input 'image' contains more than 64 images. Send several requests, "
                                               "at most 64 in each."})  # fmt: skip


@pytest.mark.parametrize("what", ["inputs", "parameters", "images", "numbers", "sides", "fields within fields"])
def test_many_of_anything_are_refused_over_grpc(server: Server, what: str) -> None:
    """Two bytes of a message can become an object of a hundred."""
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1])
    request = pb.ModelInferRequest(model_name="tiles")
    if what == "numbers":
        tensor.contents.uint_contents.extend([1] * 13_000_000)
    if what == "images":
        tensor.contents.bytes_contents.extend([b""] * 1_000_000)
    if what == "sides":
        tensor.shape.extend([2**62] * 400_000)
    if what == "parameters":
        for number in range(100_000):
            request.parameters[str(number)].bool_param = True
    request.inputs.append(tensor)
    content = request.SerializeToString() + {"inputs": b"\x2a\0" * 5_000_000}.get(what, b"")
    if what == "fields within fields":
        content += b"\x2a\x04\x2a\x02\x42\0" * 1_000_000
    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel, nothing_suffers(server):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(content, timeout=60)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT, call.details()
    assert len(call.details()) < 1000


@contextmanager
def nothing_suffers(server: Server) -> Iterator[None]:
    """Check that what is sent in the block takes neither much time nor much memory, nor keeps a probe waiting."""
    process = psutil.Process(server.process.pid)
    before, slowest, done = process.memory_info().rss, 0.0, threading.Event()

    def probe() -> None:
        nonlocal slowest
        connection = server.connect()
        while not done.is_set():
            began = time.monotonic()
            assert get(connection, "/v2/health/live")[0] == 200
            slowest = max(slowest, time.monotonic() - began)

    prober = threading.Thread(target=probe)
    prober.start()
    began = time.monotonic()
    try:
        yield
        took = time.monotonic() - began
    finally:
        done.set()
        prober.join()
    began = time.monotonic()
    score(server)
    patience = max(SECOND, PLAIN_REQUESTS * (time.monotonic() - began))
    assert took < 2 * patience
    assert slowest < patience
    assert process.memory_info().rss - before < 200e6


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "٣", "0x10", "1 1", ""])
def test_a_strange_length_of_the_json_part_is_named(server: Server, length: str) -> None:
    connection = server.connect()
    headers = OCTETS | {"Inference-Header-Content-Length": length.encode("utf-8")}
    connection.request("POST", V2, b"{}", headers)
    response = connection.getresponse()
    assert response.status == 400
    assert b"error" in response.read()


def test_large_headers_are_refused(server: Server) -> None:
    connection = server.connect()
    with suppress(OSError):
        connection.putrequest("GET", "/v2/health/live")
        for number in range(20):
            connection.putheader(f"X-{number}", "a" * 2**20)
        connection.endheaders()
    with suppress(OSError, http.client.HTTPException):
        assert connection.getresponse().status == 431


def test_compressed_bodies_are_read_within_the_limit(server: Server) -> None:
    body = json.dumps({"instances": [b64(IMAGES[1])]}).encode()
    status, answer = post(server.connect(), V1, gzip.compress(body), {"Content-Encoding": "gzip"})
    assert (status, answer) == (200, score(server))
    status, answer = post(server.connect(), V1, gzip.compress(bytes(100_000_000)), {"Content-Encoding": "gzip"})
    assert status == 400
    assert "once unpacked" in str(answer["error"])
    assert post(server.connect(), V1, body, {"Content-Encoding": "br"})[0] == 415


def test_versions_are_those_that_are_served(server: Server) -> None:
    connection = server.connect()
    status, about = get(connection, "/v2/models/tiles")
    assert (status, about["versions"]) == (200, ["7"])
    assert get(connection, "/v2/models/tiles/versions/7") == (200, about)
    assert get(connection, "/v2/models/tiles/versions/7/ready")[0] == 200
    assert post(connection, "/v2/models/tiles/versions/7/infer", {"inputs": [TENSOR]})[0] == 200
    for path in ("/v2/models/tiles/versions/8", "/v2/models/tiles/versions/8/ready"):
        status, answer = get(connection, path)
        assert (status, answer) == (404, {"error": "Line tiles is served in version 7, not in '8'."})
    assert post(connection, "/v2/models/tiles/versions/8/infer", {"inputs": [TENSOR]})[0] == 404
