"""A real server process, asked over REST and gRPC as a client would."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from csflow.adapters.serving import without_arguments
from csflow.adapters.serving.__main__ import main
from csflow.adapters.serving.requests import MAX_IMAGES
from csflow.data.image_files import SERVED_FORMATS
from csflow.data.images import decode_image, read_image
from csflow.detector.detector import Detector, Prediction
from csflow.errors import DataError
from csflow.system.ports import free_port
from tests.csflow.data.encodings import Encoding, grey, refused, same_picture, texture

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """A server with the lines ``tiles`` (version 7) and ``plain`` (without calibration)."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    tiles: Path
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=60)


@pytest.fixture(scope="module")
def server(make_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tiles, plain = make_detector("tiles"), make_detector("plain", calibrated=False)
    port, grpc_port = free_port(HOST), free_port(HOST)
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "csflow.adapters.serving", "--port", str(port), "--grpc-port", str(grpc_port)]
    command += ["--model", f"tiles={tiles}", "--model", f"plain={plain}", "--version", "tiles=7"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    started = Server(process, port, grpc_port, tiles, log)
    try:
        wait_until_ready(started)
        yield started
    finally:
        process.terminate()
        assert process.wait(40) == 0, log.read_text()[-3000:]


def wait_until_ready(server: Server) -> None:
    for _ in range(1200):
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        try:
            if get(server.connect(), "/v2/models/tiles/ready")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(server.log.read_text()[-3000:])


@pytest.fixture
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    opened = server.connect()
    yield opened
    opened.close()


def encoded(seed: int, size: tuple[int, int] = (100, 60), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [encoded(1), encoded(2, (64, 64)), encoded(3, kind="JPEG")]


@pytest.fixture(scope="module")
def expected(server: Server) -> list[Prediction]:
    return Detector.load(server.tiles).predict([read_image(image) for image in IMAGES])


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, dict[str, object]]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def post(
    connection: http.client.HTTPConnection, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, object]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, raw, {"Content-Type": "application/json"} | (headers or {}))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


V1, V2 = "/v1/models/tiles:predict", "/v2/models/tiles/infer"


def test_v1_answers_what_the_detector_says(connection: http.client.HTTPConnection, expected: list[Prediction]) -> None:
    status, body = post(connection, V1, {"instances": [{"image": {"b64": b64(image)}} for image in IMAGES]})
    assert status == 200
    for answer, prediction in zip(body["predictions"], expected, strict=True):
        assert answer == {
            "score": pytest.approx(prediction.score, rel=1e-5),
            "p_value": pytest.approx(prediction.p_value),
            "decision": prediction.decision,
            "threshold": prediction.threshold,
            "version": "7",
        }


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain"])
def test_v1_reads_json_under_any_content_type(connection: http.client.HTTPConnection, kind: str) -> None:
    status, body = post(connection, V1, {"instances": [b64(IMAGES[0])]}, {"Content-Type": kind})
    assert status == 200, body


def test_heat_map_and_boxes_come_on_request(connection: http.client.HTTPConnection, expected: list[Prediction]) -> None:
    instances = [{"image": b64(IMAGES[0]), "heatmap": True, "boxes": True}, {"image": b64(IMAGES[1]), "boxes": False}]
    status, body = post(connection, V1, {"instances": instances})
    assert status == 200
    first, second = body["predictions"]
    with Image.open(io.BytesIO(base64.b64decode(first["heatmap"]))) as heatmap:
        assert (heatmap.format, heatmap.size) == ("PNG", (100, 60))
    assert len(first["boxes"]) == len(expected[0].boxes) > 0
    for box, region in zip(first["boxes"], expected[0].boxes, strict=True):
        assert (box["x"], box["y"], box["width"], box["height"]) == (region.x, region.y, region.width, region.height)
    assert "heatmap" not in second
    assert "boxes" not in second


def test_a_line_without_calibration_gives_scores_without_decisions(connection: http.client.HTTPConnection) -> None:
    instance = {"image": b64(IMAGES[0]), "boxes": True}
    status, body = post(connection, "/v1/models/plain:predict", {"instances": [instance]})
    (answer,) = body["predictions"]
    assert status == 200
    assert answer["score"] > 0
    assert [answer[name] for name in ("p_value", "decision", "threshold", "boxes")] == [None] * 4
    assert len(answer["version"]) == 12  # no version given: the start of the detector's digest
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(IMAGES[0])]}
    status, body = post(connection, "/v2/models/plain/infer", {"inputs": [tensor]})
    assert status == 200
    assert [output["name"] for output in body["outputs"]] == ["score", "version"]


def values(body: dict[str, object]) -> dict[str, list[object]]:
    return {output["name"]: output["data"] for output in body["outputs"]}


def test_v2_json(connection: http.client.HTTPConnection, expected: list[Prediction]) -> None:
    tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "data": [b64(image) for image in IMAGES]}
    status, body = post(connection, V2, {"inputs": [tensor], "parameters": {"heatmap": True, "boxes": True}})
    assert status == 200, body
    outputs = values(body)
    assert outputs["score"] == pytest.approx([p.score for p in expected], rel=1e-5)
    assert outputs["decision"] == [p.decision for p in expected]
    assert outputs["version"] == ["7"] * 3
    assert body["model_version"] == "7"
    assert body["id"]
    assert base64.b64decode(outputs["heatmap"][0]).startswith(b"\x89PNG")
    assert len(json.loads(outputs["boxes"][0])) == len(expected[0].boxes)


def test_v2_reads_one_image_as_octets(connection: http.client.HTTPConnection, expected: list[Prediction]) -> None:
    tensor = {"name": "image", "shape": [len(IMAGES[1])], "datatype": "UINT8", "data": list(IMAGES[1])}
    status, body = post(connection, V2, {"inputs": [tensor]})
    assert status == 200
    assert values(body)["score"] == pytest.approx([expected[1].score], rel=1e-5)


def binary(request: dict[str, object], tail: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(request).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + tail, headers


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_v2_binary_extension_takes_raw_images(
    connection: http.client.HTTPConnection, expected: list[Prediction]
) -> None:
    tail = packed(*IMAGES)
    tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
    status, body = post(connection, V2, *binary({"id": "42", "inputs": [tensor]}, tail))
    assert status == 200, body
    assert body["id"] == "42"
    assert values(body)["score"] == pytest.approx([p.score for p in expected], rel=1e-5)


def test_v2_binary_extension_answers_in_kind(
    connection: http.client.HTTPConnection, expected: list[Prediction]
) -> None:
    size = len(IMAGES[0])
    tensor = {"name": "image", "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    wanted = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "heatmap"}]
    body, headers = binary({"inputs": [tensor], "outputs": wanted}, IMAGES[0])
    connection.request("POST", V2, body, headers)
    response = connection.getresponse()
    raw = response.read()
    assert response.status == 200, raw
    length = int(response.headers["inference-header-content-length"])
    outputs = {output["name"]: output for output in json.loads(raw[:length])["outputs"]}
    assert set(outputs) == {"score", "heatmap"}
    assert struct.unpack("<d", raw[length:])[0] == pytest.approx(expected[0].score, rel=1e-5)


def test_metadata_names_inputs_and_outputs(connection: http.client.HTTPConnection) -> None:
    status, body = get(connection, "/v2/models/tiles")
    assert status == 200
    assert body["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {"score", "heatmap", "boxes"} <= {output["name"] for output in body["outputs"]}


TRUNCATED = IMAGES[0][:-2000]
TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(IMAGES[0])]}
OCTETS = {"Content-Type": "application/octet-stream"}
BAD: list[tuple[str, str, object, dict[str, str], str]] = [
    ("no json", V1, b"{", {}, "not JSON"),
    ("empty body", V1, b"", {}, "not JSON"),
    ("no object", V1, [], {}, "JSON list"),
    ("wrong key", V1, {"instance": []}, {}, "'instances'"),
    ("instances no list", V1, {"instances": "x"}, {}, "expected a list"),
    ("nothing", V1, {"instances": []}, {}, "no image"),
    ("too many", V1, {"instances": [b64(IMAGES[0])] * (MAX_IMAGES + 1)}, {}, "at most"),
    ("wrong base64", V1, {"instances": ["%%%"]}, {}, "not base64"),
    ("no image", V1, {"instances": [b64(IMAGES[0]), b64(b"hello")]}, {}, "instances[1]"),
    ("empty image", V1, {"instances": [""]}, {}, "empty"),
    ("truncated", V1, {"instances": [b64(TRUNCATED)]}, {}, "damaged"),
    ("cloud event", V1, {"instances": []}, {"ce-id": "1", "ce-source": "x", "ce-type": "t"}, "no image"),
    ("v2 no json", V2, b"{", {}, ""),
    ("v2 list", V2, [], {}, ""),
    ("v2 no inputs", V2, {}, {}, "inputs"),
    ("v2 empty inputs", V2, {"inputs": []}, {}, "no input"),
    ("v2 wrong name", V2, {"inputs": [TENSOR | {"name": "x"}]}, {}, "'image'"),
    ("v2 wrong type", V2, {"inputs": [TENSOR | {"datatype": "FP32"}]}, {}, "BYTES"),
    ("v2 unknown type", V2, {"inputs": [TENSOR | {"datatype": "FP16"}]}, {}, "FP16"),
    ("v2 wrong shape", V2, {"inputs": [TENSOR | {"shape": [2]}]}, {}, "shape"),
    ("v2 no image", V2, {"inputs": [TENSOR | {"data": [b64(b"hello")]}]}, {}, "is not an image"),
    ("v2 truncated", V2, {"inputs": [TENSOR | {"data": [b64(TRUNCATED)]}]}, {}, "damaged"),
    ("v2 wish no boolean", V2, {"inputs": [TENSOR], "parameters": {"heatmap": "yes"}}, {}, "true or false"),
    ("v2 unknown output", V2, {"inputs": [TENSOR], "outputs": [{"name": "x"}]}, {}, "'x'"),
    ("binary no inputs", V2, b"{}", OCTETS, "inputs"),
    ("binary no json", V2, b"\xff\xfe", OCTETS, "not JSON"),
    ("binary wrong header", V2, b"{}", OCTETS | {"Inference-Header-Content-Length": "x"}, "length of the JSON"),
    ("binary header too long", V2, b"{}", OCTETS | {"Inference-Header-Content-Length": "9"}, "length of the JSON"),
    ("binary inputs no list", V2, b'{"inputs": 3}', OCTETS, "not a list"),
    ("binary input no object", V2, b'{"inputs": [3]}', OCTETS, "not a JSON object"),
    ("binary no shape", V2, b'{"inputs": [{"name": "image"}]}', OCTETS, "shape"),
    ("binary shape", V2, b'{"inputs": [{"name": "image", "shape": ["a"], "datatype": "BYTES"}]}', OCTETS, "shape"),
    ("binary no data", V2, b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}', OCTETS, "data"),
    ("binary left over", V2, *binary({"inputs": [TENSOR]}, b"rest"), "follow the last tensor"),
    (
        "binary size too large",
        V2,
        *binary({"inputs": [{k: TENSOR[k] for k in ("name", "shape", "datatype")}
                            | {"parameters": {"binary_data_size": 9}}]}, b"1234"),
        "binary_data_size",
    ),
    (
        "binary element cut",
        V2,
        *binary({"inputs": [{k: TENSOR[k] for k in ("name", "shape", "datatype")}
                            | {"parameters": {"binary_data_size": 5}}]}, struct.pack("<I", 99) + b"x"),
        "declares 99 bytes",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "headers", "reason"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_a_bad_request_is_a_400_with_its_reason_and_keeps_the_connection(
    connection: http.client.HTTPConnection, path: str, body: object, headers: dict[str, str], reason: str
) -> None:
    status, answer = post(connection, path, body, headers)
    assert status == 400, answer
    assert reason in str(answer["error"])
    kept = connection.sock
    assert kept is not None
    status, answer = post(connection, V1, {"instances": [b64(IMAGES[1])]})
    assert status == 200
    assert connection.sock is kept


def test_an_unknown_line_is_a_404(connection: http.client.HTTPConnection) -> None:
    for path in ("/v1/models/nothing:predict", "/v2/models/nothing/infer"):
        status, body = post(connection, path, {"inputs": [TENSOR], "instances": []})
        assert status == 404
        assert "nothing" in str(body["error"])
    assert get(connection, "/v2/models/nothing/ready")[0] == 404


def test_an_overlong_body_is_refused_before_it_is_read(server: Server) -> None:
    connection = server.connect()
    connection.putrequest("POST", V1)
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert b"larger than" in response.read()


@pytest.mark.parametrize("path", [V1, V2])
def test_an_overlong_body_without_declared_length_is_refused(server: Server, path: str) -> None:
    connection = server.connect()
    chunk = b"x" * 2**20
    with suppress(BrokenPipeError, ConnectionResetError):  # the server need not read on once it has refused
        connection.request("POST", path, iter([chunk] * 66), {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413, response.read()


def test_probes_are_answered_while_images_are_scored(server: Server) -> None:
    done = threading.Event()

    def score() -> None:
        post(server.connect(), V1, {"instances": [b64(encoded(9, (600, 600)))] * 16})
        done.set()

    worker = threading.Thread(target=score)
    worker.start()
    time.sleep(0.1)
    probes = 0
    while not done.is_set():
        assert get(server.connect(), "/v2/models/tiles/ready")[0] == 200
        probes += 1
    worker.join()
    assert probes >= 3


def test_only_the_loopback_address_is_bound(server: Server) -> None:
    for port in (server.port, server.grpc_port):
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex(("127.0.0.2", port)) != 0


def test_grpc(server: Server, expected: list[Prediction]) -> None:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[3])
    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(pb.ModelReadyRequest(name="tiles")).ready
        request = pb.ModelInferRequest(model_name="tiles", inputs=[tensor], raw_input_contents=[packed(*IMAGES)])
        request.parameters["boxes"].bool_param = True
        raw = stub.ModelInfer(request)
        names = [output.name for output in raw.outputs]
        assert np.frombuffer(raw.raw_output_contents[names.index("score")], np.float64) == pytest.approx(
            [p.score for p in expected], rel=1e-5
        )
        assert "boxes" in names
        assert "heatmap" not in names
        tensor.contents.bytes_contents.extend(IMAGES)
        typed = stub.ModelInfer(pb.ModelInferRequest(model_name="tiles", inputs=[tensor]))
        outputs = {output.name: output.contents for output in typed.outputs}
        assert list(outputs["decision"].bytes_contents) == [str(p.decision).encode() for p in expected]
        for wrong in (b"hello", struct.pack("<I", 9), packed(TRUNCATED)):
            one = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(pb.ModelInferRequest(model_name="tiles", inputs=[one], raw_input_contents=[wrong]))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "image" in caught.value.details()


def assert_same_scores(encodings: Sequence[Encoding], scores: Sequence[float], told: dict[str, float]) -> None:
    """Pictures of the same pixels have one score; others differ as little as their codec makes them."""
    for encoding, score in zip(encodings, scores, strict=True):
        expected = told["colour" if encoding.colour else "grey"]
        assert score == pytest.approx(expected, rel=0.05 if encoding.tolerance else 1e-5), encoding.name


@pytest.fixture(scope="module")
def told(server: Server) -> dict[str, float]:
    detector = Detector.load(server.tiles)
    pictures = {"colour": Image.fromarray(texture()), "grey": Image.fromarray(grey()).convert("RGB")}
    return {name: detector.predict([picture])[0].score for name, picture in pictures.items()}


def parts(encodings: Iterable[Encoding]) -> list[list[Encoding]]:
    """Divide pictures into requests of as many as one may hold."""
    listed = list(encodings)
    return [listed[start : start + MAX_IMAGES] for start in range(0, len(listed), MAX_IMAGES)]


CLOSED = "closed here|takes long to decode"


def is_open(encoding: Encoding) -> bool:
    """Formats whose headers do not bound what decoding takes stay closed to strangers."""
    try:
        decode_image(encoding.content, name="", bit_depth=16, formats=SERVED_FORMATS)
    except DataError as error:
        return re.search(CLOSED, str(error)) is None
    return True


def test_formats_that_stay_closed_are_named(connection: http.client.HTTPConnection) -> None:
    closed = [encoding for encoding in same_picture() if not is_open(encoding)]
    assert {encoding.suffix for encoding in closed} >= {".jp2", ".avif", ".qoi"}
    for encoding in closed:
        status, body = post(connection, V1, {"instances": [b64(encoding.content)]})
        assert status == 400, encoding.name
        assert re.search(CLOSED, str(body["error"])), encoding.name


def test_every_encoding_of_a_picture_has_one_score_in_v1_and_v2(
    connection: http.client.HTTPConnection, told: dict[str, float]
) -> None:
    for encodings in parts(filter(is_open, same_picture())):
        contents = [encoding.content for encoding in encodings]
        status, body = post(connection, V1, {"instances": [b64(content) for content in contents]})
        assert status == 200, body
        assert_same_scores(encodings, [answer["score"] for answer in body["predictions"]], told)
        tail = packed(*contents)
        tensor = {"name": "image", "shape": [len(contents)], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(tail)}
        status, body = post(connection, V2, *binary({"inputs": [tensor]}, tail))
        assert status == 200, body
        assert_same_scores(encodings, values(body)["score"], told)


def test_every_encoding_of_a_picture_has_one_score_in_grpc(server: Server, told: dict[str, float]) -> None:
    with without_arguments():
        import grpc
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(f"{HOST}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for encodings in parts(filter(is_open, same_picture())):
            tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(encodings)])
            tail = packed(*(encoding.content for encoding in encodings))
            answer = stub.ModelInfer(
                pb.ModelInferRequest(model_name="tiles", inputs=[tensor], raw_input_contents=[tail])
            )
            names = [output.name for output in answer.outputs]
            scores = np.frombuffer(answer.raw_output_contents[names.index("score")], np.float64)
            assert_same_scores(encodings, list(scores), told)
        for encoding, words in ((each, words) for each, words in refused() if is_open(each)):
            one = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
            request = pb.ModelInferRequest(
                model_name="tiles", inputs=[one], raw_input_contents=[packed(encoding.content)]
            )
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, encoding.name
            assert re.search(words, caught.value.details()), encoding.name


def test_a_picture_that_is_unknown_is_a_400_with_the_remedy(connection: http.client.HTTPConnection) -> None:
    for encoding, words in ((each, words) for each, words in refused() if is_open(each)):
        status, body = post(connection, V1, {"instances": [b64(encoding.content)]})
        assert status == 400, encoding.name
        assert re.search(words, str(body["error"])), encoding.name


def test_serving_imports_neither_tracker_nor_orchestrator_nor_training_parts() -> None:
    unwanted = ("mlflow", "kfp", "dvc", "great_expectations", "matplotlib", "sklearn")
    code = (
        "import sys; from csflow.adapters.serving import without_arguments\n"
        "with without_arguments():\n    import csflow.adapters.serving.server\n"
        f"print([name for name in {unwanted!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_directory_without_detector_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", "--model", f"x={tmp_path}"]) == 1
    assert "is not a detector directory" in capsys.readouterr().err


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", "--model", "x"]) == 2
    assert "LINE=VALUE" in capsys.readouterr().err


def test_a_port_in_use_is_named(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", str(server.port), "--model", f"x={tmp_path}"]) == 1
    assert f"Port {server.port} on 127.0.0.1 is in use" in capsys.readouterr().err


def counted(connection: http.client.HTTPConnection) -> dict[str, float]:
    """Requests of the line tiles by outcome, as Prometheus reads them."""
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.labels["outcome"]: sample.value
        for sample in samples
        if sample.name == "csflow_requests_total" and sample.labels["model_name"] == "tiles"
    }


def test_requests_are_counted_by_how_they_end(connection: http.client.HTTPConnection) -> None:
    right, wrong = {"instances": [b64(IMAGES[0])]}, {"instances": [b64(b"no image")]}
    for body in (right, wrong):
        post(connection, V1, body)
    before = counted(connection)
    for body in (right, right, wrong):
        post(connection, V1, body)
    after = counted(connection)
    assert {name: after[name] - before[name] for name in after} == {"answered": 2.0, "refused": 1.0}


@pytest.mark.slow
def test_a_request_that_fails_is_a_failure_of_ours(make_detector: Callable[..., Path]) -> None:
    code = """if True:
        import asyncio, math, sys
        from pathlib import Path
        from csflow.adapters.serving import ServedDetector, without_arguments
        with without_arguments():
            from csflow.adapters.serving.access import Access, accounted
            from csflow.adapters.serving.decoding import Decoder
            from csflow.adapters.serving.errors import ScoringError
            from csflow.adapters.serving.limits import Limits
            from csflow.adapters.serving.lines import Lines
            from csflow.adapters.serving.plane import Plane
            from csflow.adapters.serving.requests import images_of_instances
            from csflow.adapters.serving.scheduler import Scheduler
        lines = Lines()
        lines.serve({"tiles": ServedDetector(Path(sys.argv[1]))})
        plane = Plane(lines, Scheduler(1, Decoder(Limits()), Limits()))
        async def ask():
            line = await plane.line("tiles")
            line.engine.trunk.session = None  # as if memory were broken
            return await plane.predict(line, images_of_instances({"instances": [sys.argv[2]]}), due=math.inf)
        try:
            asyncio.run(ask())
        except ScoringError as error:
            print(error.status, error.code, error.outcome, str(error))
    """
    command = [sys.executable, "-c", code, str(make_detector("tiles")), b64(IMAGES[1])]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "500 INTERNAL failed tiles could not score the images. See the server's log.\n"


@pytest.mark.slow
def test_sigterm_finishes_the_request_in_flight(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    directory, port, log = make_detector("tiles"), free_port(HOST), tmp_path / "log"
    command = [sys.executable, "-m", "csflow.adapters.serving", "--port", str(port), "--model", f"tiles={directory}"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, port, 0, directory, log)
    wait_until_ready(server)
    statuses: list[int] = []
    sent = threading.Event()

    def score() -> None:
        connection = server.connect()
        connection.request("POST", V1, json.dumps({"instances": [b64(encoded(9, (600, 600)))] * 16}))
        sent.set()
        statuses.append(connection.getresponse().status)

    worker = threading.Thread(target=score)
    worker.start()
    assert sent.wait(60)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    worker.join(60)
    assert statuses == [200]
    assert process.wait(40) == 0
