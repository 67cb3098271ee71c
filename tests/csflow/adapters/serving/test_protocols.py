"""The ways to say the same in KServe's protocols: a real server, over REST and gRPC."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.serving import without_arguments
from csflow.data.images import read_image
from tests.csflow.adapters.serving.test_observability import Watched, metrics, value, watched
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
    encoded,
    packed,
    post,
    server,
    values,
)

__all__ = ["server", "watched"]  # fixtures

PNG = IMAGES[0]
PIXELS = np.asarray(read_image(PNG))
PNGS = [encoded(11, (40, 30)), encoded(12, (40, 30))]
SEVERAL = np.stack([np.asarray(read_image(content)) for content in PNGS])


def v1(server: Server, *contents: bytes) -> list[float]:
    status, body = post(server.connect(), V1, {"instances": [b64(content) for content in contents]})
    assert status == 200, body
    return [each["score"] for each in body["predictions"]]


def v2(server: Server, tensor: dict[str, Any], **more: Any) -> list[float]:
    status, body = post(server.connect(), V2, {"inputs": [tensor]} | more)
    assert status == 200, body
    return values(body)["score"]


@pytest.fixture(scope="module")
def score(server: Server) -> float:
    return v1(server, PNG)[0]


@pytest.fixture(scope="module")
def scores(server: Server) -> list[float]:
    return v1(server, *PNGS)


@pytest.fixture(scope="module")
def rpc(server: Server) -> Iterator[Any]:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def call(shape: list[int], datatype: str, raw: bytes | None = None, **fields: Any) -> Any:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)
    fields = {"model_name": "tiles"} | fields
    return pb.ModelInferRequest(inputs=[tensor], raw_input_contents=[] if raw is None else [raw], **fields)


def scores_of(answer: Any) -> list[float]:
    names = [output.name for output in answer.outputs]
    if answer.raw_output_contents:
        return list(np.frombuffer(answer.raw_output_contents[names.index("score")], np.float64))
    return list(answer.outputs[names.index("score")].contents.fp64_contents)


def refused(rpc: Any, request: Any, **keywords: Any) -> tuple[str, str]:
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        rpc.ModelInfer(request, **keywords)
    return caught.value.code().name, caught.value.details()


# Pixels


def pixel_tensor(pixels: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)} | more


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_pixels_in_json_score_as_their_file(
    server: Server, score: float, scores: list[float], nested: bool, several: bool
) -> None:
    pixels = SEVERAL if several else PIXELS
    data = pixels.tolist() if nested else pixels.ravel().tolist()
    assert v2(server, pixel_tensor(pixels, data=data)) == pytest.approx(scores if several else [score], rel=1e-5)


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[None], SEVERAL], ids=["H W 3", "1 H W 3", "N H W 3"])
def test_pixels_in_bytes_score_as_their_file(
    server: Server, rpc: Any, score: float, scores: list[float], pixels: np.ndarray
) -> None:
    expected = pytest.approx(scores if len(pixels) == 2 else [score], rel=1e-5)
    tail = pixels.tobytes()
    head = {"inputs": [pixel_tensor(pixels, parameters={"binary_data_size": len(tail)})]}
    status, body = post(server.connect(), V2, *binary(head, tail))
    assert status == 200, body
    assert values(body)["score"] == expected
    assert scores_of(rpc.ModelInfer(call(list(pixels.shape), "UINT8", tail))) == expected
    typed = call(list(pixels.shape), "UINT8")
    typed.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
    assert scores_of(rpc.ModelInfer(typed)) == expected


def test_a_heat_map_of_pixels_has_their_size(server: Server) -> None:
    tensor = pixel_tensor(PIXELS, data=PIXELS.ravel().tolist())
    status, body = post(server.connect(), V2, {"inputs": [tensor], "outputs": [{"name": "heatmap"}]})
    assert status == 200
    with Image.open(io.BytesIO(base64.b64decode(values(body)["heatmap"][0]))) as heatmap:
        assert heatmap.size == (PIXELS.shape[1], PIXELS.shape[0])


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2, 4], [0] * 16),
        ([2, 2, 1], [0] * 4),
        ([0, 2, 3], []),
        ([1, 2, 0, 3], []),
        ([1, 1, 1, 1, 3], [0] * 3),
        ([1, 2, 3], [0] * 5),
        ([1, 1, 3], [0, 0, 256]),
        ([1, 1, 3], [0, 0, -1]),
        ([1, 1, 3], [0, 0, 0.5]),
        ([1, 1, 3], ["0", "0", "0"]),
        ([1, 2, 3], [[[0, 0, 0], [0, 0]]]),
    ],
)
def test_pixels_that_do_not_fit_are_a_400(server: Server, shape: list[int], data: list[Any]) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": data}
    status, body = post(server.connect(), V2, {"inputs": [tensor]})
    assert status == 400, body
    assert "image" in str(body["error"])


# Encoded images


@pytest.mark.parametrize("data", [[[b64(PNGS[0])], [b64(PNGS[1])]], [[[b64(PNGS[0]), b64(PNGS[1])]]]])
def test_nested_texts_are_read_as_the_tensor_is(server: Server, scores: list[float], data: list[Any]) -> None:
    shape = list(np.array(data, dtype=object).shape)
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape, "data": data}
    assert v2(server, tensor) == pytest.approx(scores, rel=1e-5)


TEXTS: dict[str, Callable[[str], str]] = {
    "data URI": lambda text: f"data:image/png;base64,{text}",
    "data URI with parameters": lambda text: f"data:image/png;name=part-1.png;base64,{text}",
    "URL-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "unpadded": lambda text: text.rstrip("="),
    "wrapped": lambda text: "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n",
    "all of it": lambda text: "data:;base64,\n" + text.replace("+", "-").replace("/", "_").rstrip("=") + " ",
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_base64_as_others_write_it(server: Server, score: float, name: str) -> None:
    text = TEXTS[name](b64(PNG))
    status, body = post(server.connect(), V1, {"instances": [text, {"image": {"b64": text}}]})
    assert status == 200, body
    assert [each["score"] for each in body["predictions"]] == pytest.approx([score] * 2, rel=1e-5)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    assert v2(server, tensor) == pytest.approx([score], rel=1e-5)


def test_another_data_uri_is_named(server: Server) -> None:
    status, body = post(server.connect(), V1, {"instances": ["data:image/png,%89PNG"]})
    assert status == 400
    assert "not base64" in str(body["error"])


# Bodies


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(server: Server, score: float, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = json.dumps({"instances": [b64(PNG)]}).encode()
    status, answer = post(server.connect(), V1, pack(body), {"Content-Encoding": encoding})
    assert (status, answer["predictions"][0]["score"]) == (200, pytest.approx(score, rel=1e-5))
    tail = packed(PNG)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    content, headers = binary({"inputs": [tensor]}, tail)
    status, answer = post(server.connect(), V2, pack(content), headers | {"Content-Encoding": encoding})
    assert (status, values(answer)["score"]) == (200, pytest.approx([score], rel=1e-5))


EVENT = {"specversion": "1.0", "id": "part-17", "source": "/camera/3", "type": "image", "subject": "x"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}


@pytest.mark.parametrize("packed_data", [False, True])
def test_a_structured_cloud_event_is_answered_with_one(server: Server, score: float, packed_data: bool) -> None:
    asked = {"instances": [b64(PNG)]}
    data = {"data_base64": b64(json.dumps(asked).encode())} if packed_data else {"data": asked}
    status, body = post(server.connect(), V1, EVENT | data, STRUCTURED)
    assert status == 200, body
    assert body.keys() == {"specversion", "id", "source", "type", "datacontenttype", "data"}
    assert (body["specversion"], body["id"], body["datacontenttype"]) == ("1.0", "part-17", "application/json")
    assert body["data"]["predictions"][0]["score"] == pytest.approx(score, rel=1e-5)
    status, body = post(server.connect(), V2, EVENT | {"data": {"inputs": [TENSOR]}}, STRUCTURED)
    assert status == 200, body
    assert values(body["data"])["score"] == pytest.approx([score], rel=1e-5)


@pytest.mark.parametrize(
    "event",
    [{"data": {"instances": []}}, [], EVENT, EVENT | {"data_base64": "%"}, EVENT | {"data": 3}],
    ids=["no fields", "list", "no data", "bad data", "other data"],
)
def test_an_event_that_is_wrong_is_a_400(server: Server, event: object) -> None:
    assert post(server.connect(), V1, event, STRUCTURED)[0] == 400


# gRPC


def test_grpc_honours_the_choice_of_outputs(rpc: Any) -> None:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("score", "boxes")]
    answer = rpc.ModelInfer(call([1], "BYTES", packed(PNG), outputs=wanted))
    assert [output.name for output in answer.outputs] == ["score", "boxes"]
    unknown = [pb.ModelInferRequest.InferRequestedOutputTensor(name="colour")]
    code, details = refused(rpc, call([1], "BYTES", packed(PNG), outputs=unknown))
    assert code == "INVALID_ARGUMENT"
    assert "'colour'" in details


def test_rest_honours_the_choice_of_outputs(server: Server) -> None:
    wanted = [{"name": "score"}, {"name": "boxes"}]
    status, body = post(server.connect(), V2, {"inputs": [TENSOR], "outputs": wanted})
    assert (status, [output["name"] for output in body["outputs"]]) == (200, ["score", "boxes"])
    status, body = post(server.connect(), V2, {"inputs": [TENSOR], "outputs": [{"name": "colour"}]})
    assert (status, "'colour'" in str(body["error"])) == (400, True)


def test_grpc_knows_versions(rpc: Any) -> None:
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    assert list(rpc.ModelMetadata(pb.ModelMetadataRequest(name="tiles")).versions) == ["7"]
    answer = rpc.ModelInfer(call([1], "BYTES", packed(PNG), model_version="7"))
    assert answer.model_version == "7"
    code, details = refused(rpc, call([1], "BYTES", packed(PNG), model_version="8"))
    assert (code, details) == ("NOT_FOUND", "Line tiles is served in version 7, not in '8'.")
    assert rpc.ModelReady(pb.ModelReadyRequest(name="tiles", version="7")).ready
    assert not rpc.ModelReady(pb.ModelReadyRequest(name="tiles", version="8")).ready
    with pytest.raises(grpc.RpcError) as caught:
        rpc.ModelMetadata(pb.ModelMetadataRequest(name="tiles", version="8"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_contents_that_are_there_twice_or_too_few_are_refused(rpc: Any) -> None:
    twice = call([1], "BYTES", packed(PNG))
    twice.inputs[0].contents.bytes_contents.append(PNG)
    assert refused(rpc, twice)[0] == "INVALID_ARGUMENT"
    few = call([1], "BYTES", packed(PNG))
    few.inputs.append(few.inputs[0])
    code, details = refused(rpc, few)
    assert (code, "2 inputs, but 1 raw_input_contents" in details) == ("INVALID_ARGUMENT", True)


# Clients that do not wait


LARGE = encoded(9, (400, 400), "JPEG")
"""About 100 kB."""


@pytest.fixture
def busy(server: Server) -> Iterator[None]:
    """Other clients keep the line busy meanwhile."""
    done, began = threading.Event(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            began.set()
            assert post(server.connect(), V1, {"instances": [b64(LARGE)] * 24})[0] == 200

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    assert began.wait(10)
    time.sleep(0.2)
    yield
    done.set()
    for asker in askers:
        asker.join()


@pytest.mark.parametrize(
    ("header", "given"),
    [("X-Request-Timeout", "0.05"), ("x-envoy-expected-rq-timeout-ms", "50"), ("X-Request-Timeout", "0")],
)
@pytest.mark.usefixtures("busy")
def test_what_comes_too_late_is_a_504_soon(server: Server, watched: Watched, header: str, given: str) -> None:
    body = {"instances": [b64(LARGE)] * 64}
    began = time.monotonic()
    status, answer = post(server.connect(), V1, body, {header: given})
    assert status == 504
    assert "was over before" in str(answer["error"])
    assert time.monotonic() - began < 3
    assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome="late")


def test_a_time_that_is_enough_changes_nothing(server: Server, rpc: Any, score: float) -> None:
    body = {"instances": [b64(PNG)]}
    for headers in ({"X-Request-Timeout": "30"}, {"x-envoy-expected-rq-timeout-ms": "30000"}):
        status, answer = post(server.connect(), V1, body, headers)
        assert (status, answer["predictions"][0]["score"]) == (200, pytest.approx(score, rel=1e-5))
    assert scores_of(rpc.ModelInfer(call([1], "BYTES", packed(PNG)), timeout=30)) == pytest.approx([score], rel=1e-5)


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", "", "1 s", "9" * 400])
def test_a_time_that_is_none_is_a_400(server: Server, given: str) -> None:
    status, answer = post(server.connect(), V1, {"instances": [b64(PNG)]}, {"X-Request-Timeout": given})
    assert status == 400
    assert "x-request-timeout" in str(answer["error"])


@pytest.mark.usefixtures("busy")
def test_grpc_deadlines_hold(rpc: Any, watched: Watched) -> None:
    code, _ = refused(rpc, call([64], "BYTES", packed(*[LARGE] * 64)), timeout=0.15)
    assert code == "DEADLINE_EXCEEDED"
    assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome="late")
    assert watched.more("csflow_responses_total", protocol="grpc", status="DEADLINE_EXCEEDED") == 1


def settled(server: Server) -> None:
    """Wait until nobody waits any more."""
    until = time.monotonic() + 60
    while value(metrics(server), "csflow_waiting_images") or value(metrics(server), "csflow_request_bytes"):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_most_images_of_clients_that_have_gone_are_not_computed(server: Server, watched: Watched) -> None:
    body = json.dumps({"instances": [b64(LARGE)] * 8}).encode()
    head = b"POST " + V1.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    opened = [socket.create_connection((HOST, server.port)) for _ in range(30)]
    for each in opened:
        each.sendall(head + body)
    for each in opened:
        each.close()
    assert watched.becomes(30, "csflow_requests_total", model_name="tiles", outcome="abandoned")
    settled(server)
    assert watched.more("csflow_images_total", model_name="tiles") < 240 / 3


def test_most_images_of_late_and_cancelled_calls_are_not_computed(server: Server, rpc: Any, watched: Watched) -> None:
    request = call([64], "BYTES", packed(*[LARGE] * 64))
    assert refused(rpc, request, timeout=0.2)[0] == "DEADLINE_EXCEEDED"
    future = rpc.ModelInfer.future(request)
    time.sleep(0.2)
    assert future.cancel()
    assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome="abandoned")
    assert watched.becomes(1, "csflow_requests_total", model_name="tiles", outcome="late")
    settled(server)
    assert watched.more("csflow_images_total", model_name="tiles") < 128 * 0.75


@pytest.mark.slow
def test_an_unpacked_body_counts_in_memory(server: Server) -> None:
    """Megabytes of spaces are kilobytes on the wire; of eight such requests at once, 256 MiB hold four."""
    spaces = json.dumps({"instances": [b64(LARGE)] * 48}).encode() + b" " * 55_000_000
    content = gzip.compress(spaces, 1)
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(post(server.connect(), V1, content, OCTETS | {"Content-Encoding": "gzip"})[0])

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) >= 1
