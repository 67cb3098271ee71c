"""Clients that nobody here wrote: KServe's own, requests and curl, against a real server process."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import requests

from csflow.adapters.serving import without_arguments
from csflow.detector.detector import Prediction
from tests.csflow.adapters.serving.test_server import HOST, IMAGES, V1, V2, Server, b64, expected, server

__all__ = ["expected", "server"]  # fixtures

CURL = shutil.which("curl")
OTHER = "99"
ALL = ["score", "p_value", "decision", "threshold", "version"]


def url(server: Server, path: str = "") -> str:
    return f"http://{HOST}:{server.port}{path}"


def near(predictions: list[Prediction]) -> Any:
    return pytest.approx([prediction.score for prediction in predictions], rel=1e-5)


@pytest.fixture(scope="module")
def kserve() -> Any:
    with without_arguments():
        import kserve
    return kserve


# KServe's client over REST


def rest(kserve: Any, protocol: str, call: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol=protocol, retries=0)) as client:
            return await call(client)

    return asyncio.run(run())


def bytes_input(kserve: Any) -> Any:
    tensor = kserve.InferInput("image", [len(IMAGES)], "BYTES")
    tensor.data = [b64(image) for image in IMAGES]
    return tensor


def octets_input(kserve: Any, image: bytes) -> Any:
    tensor = kserve.InferInput("image", [len(image)], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(image, np.uint8), binary_data=True)
    return tensor


def scores(response: Any) -> list[float]:
    (output,) = [output for output in response.outputs if output.name == "score"]
    return list(output.as_numpy().ravel())


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_kserve_finds_server_and_model_alive(server: Server, kserve: Any, protocol: str) -> None:
    assert rest(kserve, protocol, lambda client: client.is_server_live(url(server)))
    assert rest(kserve, protocol, lambda client: client.is_model_ready(url(server), "tiles"))


def test_kserve_finds_the_server_ready_and_an_unknown_model_not(server: Server, kserve: Any) -> None:
    assert rest(kserve, "v2", lambda client: client.is_server_ready(url(server)))
    assert not rest(kserve, "v2", lambda client: client.is_model_ready(url(server), "nothing"))


def test_kserve_predicts_over_v1(server: Server, kserve: Any, expected: list[Prediction]) -> None:
    body = {"instances": [{"image": {"b64": b64(image)}} for image in IMAGES]}
    answer = rest(kserve, "v1", lambda client: client.infer(url(server), body, model_name="tiles"))
    assert [each["score"] for each in answer["predictions"]] == near(expected)


def test_kserve_infers_over_v2(server: Server, kserve: Any, expected: list[Prediction]) -> None:
    with_base64 = kserve.InferRequest("tiles", [bytes_input(kserve)])
    answer = rest(kserve, "v2", lambda client: client.infer(url(server), with_base64, model_name="tiles"))
    assert scores(answer) == near(expected)
    assert [output.name for output in answer.outputs] == ALL
    binary = kserve.InferRequest("tiles", [octets_input(kserve, IMAGES[2])])
    answer = rest(kserve, "v2", lambda client: client.infer(url(server), binary, model_name="tiles"))
    assert scores(answer) == near(expected[2:])


def test_kserve_gets_the_outputs_it_asks_for_in_binary(server: Server, kserve: Any, expected: list[Prediction]) -> None:
    with without_arguments():
        from kserve.protocol.infer_type import RequestedOutput

    wanted = [RequestedOutput("score", {"binary_data": True})]
    request = kserve.InferRequest("tiles", [octets_input(kserve, IMAGES[0])], request_outputs=wanted)
    answer = rest(kserve, "v2", lambda client: client.infer(url(server), request, model_name="tiles"))
    assert [output.name for output in answer.outputs] == ["score"]
    assert scores(answer) == near(expected[:1])


def refused_over_rest(kserve: Any, protocol: str, call: Callable[[Any], Awaitable[Any]]) -> tuple[int, str]:
    """The status and text of the error that KServe's client raises."""
    import httpx

    with pytest.raises(httpx.HTTPStatusError) as caught:
        rest(kserve, protocol, call)
    return caught.value.response.status_code, str(caught.value)


def test_kserve_raises_what_was_wrong(server: Server, kserve: Any) -> None:
    with without_arguments():
        from kserve.protocol.infer_type import RequestedOutput

    tensors = [bytes_input(kserve)]
    unknown = kserve.InferRequest("tiles", tensors, request_outputs=[RequestedOutput("nothing")])
    for protocol, body, name, status, text in (
        ("v1", {"instances": ["%"]}, "tiles", 400, "not base64"),
        ("v1", {"instances": []}, "tiles", 400, "no image"),
        ("v1", {"instances": []}, "nothing", 404, "nothing"),
        ("v2", kserve.InferRequest("nothing", tensors), "nothing", 404, "nothing"),
        ("v2", unknown, "tiles", 400, "'nothing'"),
    ):
        found = refused_over_rest(kserve, protocol, lambda c, b=body, n=name: c.infer(url(server), b, model_name=n))
        assert found[0] == status
        assert text in found[1]


def test_kserve_is_refused_explanations(server: Server, kserve: Any) -> None:
    body = {"instances": [b64(IMAGES[0])]}
    status, _ = refused_over_rest(kserve, "v1", lambda client: client.explain(url(server), "tiles", body))
    assert status in (404, 405, 501)


# KServe's client over gRPC


def grpc(server: Server, kserve: Any, call: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with kserve.InferenceGRPCClient(f"{HOST}:{server.grpc_port}") as client:
            return await call(client)

    return asyncio.run(run())


def test_kserve_over_grpc(server: Server, kserve: Any, expected: list[Prediction]) -> None:
    assert grpc(server, kserve, lambda client: client.is_server_live())
    assert grpc(server, kserve, lambda client: client.is_server_ready())
    assert grpc(server, kserve, lambda client: client.is_model_ready("tiles"))
    tensor = kserve.InferInput("image", [len(IMAGES)], "BYTES")
    tensor.data = IMAGES
    answer = grpc(server, kserve, lambda client: client.infer(kserve.InferRequest("tiles", [tensor])))
    assert scores(answer) == near(expected)
    assert answer.model_version == "7"
    octets = kserve.InferRequest("tiles", [octets_input(kserve, IMAGES[1])])
    assert scores(grpc(server, kserve, lambda client: client.infer(octets))) == near(expected[1:2])


def test_kserve_over_grpc_raises_what_was_wrong(server: Server, kserve: Any) -> None:
    from grpc import RpcError, StatusCode

    tensor = kserve.InferInput("image", [1], "BYTES")
    tensor.data = [b"hello"]
    for name, status, text in (
        ("tiles", StatusCode.INVALID_ARGUMENT, "not an image"),
        ("nothing", StatusCode.NOT_FOUND, "nothing"),
    ):
        with pytest.raises(RpcError) as caught:
            grpc(server, kserve, lambda client, n=name: client.infer(kserve.InferRequest(n, [tensor])))
        assert caught.value.code() is status
        assert text in caught.value.details()


# requests


def test_requests_keeps_one_connection_through_everything(server: Server, expected: list[Prediction]) -> None:
    with requests.Session() as session:
        for image, prediction in zip(IMAGES, expected, strict=True):
            answer = session.post(url(server, V1), json={"instances": [b64(image)]})
            assert [each["score"] for each in answer.json()["predictions"]] == near([prediction])
            assert session.post(url(server, V1), json={"instances": ["%"]}).status_code == 400
            assert session.get(url(server, "/nothing")).status_code == 404
            assert session.put(url(server, V1)).status_code == 405
        pools = session.get_adapter(url(server)).poolmanager.pools
        (key,) = pools.keys()
        assert pools[key].num_connections == 1


def test_requests_reads_every_description(server: Server) -> None:
    described = {
        path: requests.get(url(server, path)).json()
        for path in ("/", "/v2", "/v1/models", "/v2/models/tiles", "/v2/models/tiles/versions/7", "/v2/health/ready")
    }
    assert described["/"] == {"status": "alive"}
    assert described["/v2"]["name"] == "csflow"
    assert described["/v1/models"] == {"models": ["tiles", "plain"]}
    assert described["/v2/models/tiles"] == described["/v2/models/tiles/versions/7"]
    assert described["/v2/models/tiles"]["versions"] == ["7"]
    assert requests.get(url(server, f"/v2/models/tiles/versions/{OTHER}")).status_code == 404


def test_requests_sends_a_stream_of_unknown_length(server: Server, expected: list[Prediction]) -> None:
    body = json.dumps({"instances": [b64(IMAGES[0])]}).encode()
    answer = requests.post(url(server, V1), data=iter([body[:100], body[100:]]))
    assert [each["score"] for each in answer.json()["predictions"]] == near(expected[:1])


# curl


def curl(server: Server, path: str, *options: str, data: bytes | None = None) -> tuple[int, bytes]:
    """The status and body that curl gets; ``data`` is its standard input."""
    if CURL is None:
        pytest.skip("curl is not installed")
    command = [CURL, "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", *options]
    ran = subprocess.run([*command, url(server, path)], input=data, capture_output=True, check=True)
    body, _, status = ran.stdout.rpartition(b"\n")
    return int(status), body


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
OFFERS_HTTP2 = [option for header in OFFER for option in ("--header", header)]

BODY = json.dumps({"instances": [{"image": {"b64": b64(IMAGES[0])}}]}).encode()


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ([], BODY),
        (["--header", "Content-Type: application/json"], BODY),
        (["--header", "Expect: 100-continue"], BODY),
        (["--header", "Transfer-Encoding: chunked"], BODY),
        (["--header", "Content-Encoding: gzip"], gzip.compress(BODY, mtime=0)),
        (["--compressed"], BODY),
        (["--http1.0"], BODY),
        (OFFERS_HTTP2, BODY),
    ],
    ids=lambda value: " ".join(value) or "alone" if isinstance(value, list) else "",
)
def test_curl_predicts(server: Server, expected: list[Prediction], options: list[str], data: bytes) -> None:
    status, body = curl(server, V1, "--data-binary", "@-", *options, data=data)
    assert status == 200, body
    assert [each["score"] for each in json.loads(body)["predictions"]] == near(expected[:1])


def test_curl_sends_a_file_as_octets(server: Server, expected: list[Prediction]) -> None:
    head = {"name": "image", "shape": [len(IMAGES[1])], "datatype": "UINT8"}
    head["parameters"] = {"binary_data_size": len(IMAGES[1])}
    described = json.dumps({"inputs": [head]}).encode()
    length = f"Inference-Header-Content-Length: {len(described)}"
    options = ["--header", "Content-Type: application/octet-stream", "--header", length, "--data-binary", "@-"]
    status, body = curl(server, V2, *options, data=described + IMAGES[1])
    assert status == 200, body
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    assert outputs["score"] == near(expected[1:2])


@pytest.mark.parametrize("options", [["--form", "image=@-"], ["--data", "a=b"], ["--request", "DELETE"]])
def test_curl_is_told_what_is_wrong(server: Server, options: list[str]) -> None:
    status, body = curl(server, V1, *options, data=IMAGES[0])
    assert status in (400, 405, 415)
    assert json.loads(body)["error"]
