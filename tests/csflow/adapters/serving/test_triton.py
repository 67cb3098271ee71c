"""Every call of Triton's clients, which nobody here wrote, against a real server process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from csflow.detector.detector import Prediction
from tests.csflow.adapters.serving.test_clients import ALL, OTHER, near
from tests.csflow.adapters.serving.test_server import IMAGES, Server, expected, server

__all__ = ["expected", "server"]  # fixtures

pytestmark = [pytest.mark.triton, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[4]
TRITON = "CSFLOW_TEST_TRITON"
"""Python interpreter of an environment with Triton's client; ``.ci/clients`` makes one."""


def triton_python() -> Path | None:
    found = Path(os.environ.get(TRITON) or ROOT / "build/clients/bin/python")
    return found if found.is_file() else None


@pytest.fixture(scope="module")
def triton(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every call of Triton's clients, by client and call."""
    python = triton_python()
    if python is None:
        pytest.skip(f"needs Triton's client: run .ci/clients, or set {TRITON} to a Python interpreter that has it")
    files = [tmp_path_factory.mktemp("sent") / str(number) for number in range(len(IMAGES))]
    for file, image in zip(files, IMAGES, strict=True):
        file.write_bytes(image)
    script = Path(__file__).with_name("triton_calls.py")
    command = [str(python), str(script), str(server.port), str(server.grpc_port), "tiles", "7", *map(str, files)]
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(command, capture_output=True, text=True, env=inherited, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    outcomes: dict[str, Any] = json.loads(ran.stdout)
    return outcomes


both = pytest.mark.parametrize("client", ["http", "grpc"])


@both
def test_triton_finds_server_and_model(triton: dict[str, Any], client: str) -> None:
    outcomes = triton[client]
    for call in ("live", "ready", "model ready", "model ready in its version"):
        assert outcomes[call] == {"value": True}, call
    assert outcomes["server metadata"]["value"]["name"] == "csflow"
    for call in ("model metadata", "model metadata in its version"):
        about = outcomes[call]["value"]
        assert about["name"] == "tiles"
        assert [output["name"] for output in about["outputs"]] == [*ALL, "heatmap", "boxes"]


@both
def test_triton_finds_the_version_in_the_metadata(triton: dict[str, Any], client: str) -> None:
    assert triton[client]["model metadata"]["value"]["versions"] == ["7"]


@both
@pytest.mark.parametrize(
    "call",
    [
        "infer",
        "infer in its version",
        "infer with an id",
        "infer with parameters",
        "infer a sequence",
        "infer with priority and timeout",
        "async infer",
        "infer compressed",
        "infer at the end",
    ],
)
def test_triton_infers(triton: dict[str, Any], expected: list[Prediction], client: str, call: str) -> None:
    answer = triton[client][call]["value"]
    assert answer["outputs"]["score"] == near(expected)
    assert answer["outputs"]["decision"] == [prediction.decision for prediction in expected]
    assert answer["version"] == "7"
    assert list(answer["outputs"]) == ALL + (["boxes"] if call == "infer with parameters" else [])
    if call == "infer with an id":
        assert answer["id"] == "42"


@pytest.mark.parametrize("call", ["infer json", "infer deflated"])
def test_triton_infers_over_http_in_other_ways(triton: dict[str, Any], expected: list[Prediction], call: str) -> None:
    assert triton["http"][call]["value"]["outputs"]["score"] == near(expected)


@both
def test_triton_sends_one_image_as_octets(triton: dict[str, Any], expected: list[Prediction], client: str) -> None:
    assert triton[client]["infer octets"]["value"]["outputs"]["score"] == near(expected[:1])


def test_triton_infers_with_asyncio(triton: dict[str, Any], expected: list[Prediction]) -> None:
    for client in ("http", "grpc"):
        answers = triton["asyncio"]["value"][client]
        assert [answer["outputs"]["score"][0] for answer in answers] == near(expected)


@both
def test_triton_gets_the_outputs_it_asks_for(triton: dict[str, Any], expected: list[Prediction], client: str) -> None:
    assert list(triton[client]["infer one output"]["value"]["outputs"]) == ["score"]
    outputs = triton[client]["infer a heat-map"]["value"]["outputs"]
    assert set(outputs) == {"decision", "heatmap"}
    assert len(outputs["heatmap"]) == len(expected)


NOT_FOUND, INVALID = ("404", "StatusCode.NOT_FOUND"), ("400", "StatusCode.INVALID_ARGUMENT")
WRONG = [
    ("metadata of another model", NOT_FOUND, "nothing"),
    ("infer another model", NOT_FOUND, "nothing"),
    ("infer unknown input", INVALID, "'nothing'"),
    ("infer floats", INVALID, "FP32"),
    ("infer no picture", INVALID, "not an image"),
]
WRONG_BUT_FOR_GRPC_NOT_YET = [
    ("model metadata in another version", NOT_FOUND, OTHER),
    ("infer in another version", NOT_FOUND, OTHER),
    ("infer unknown output", INVALID, "nothing"),
]


def assert_refused(outcome: dict[str, Any], status: tuple[str, str], text: str) -> None:
    """The client raised its own exception, with a status and a text that helps."""
    assert outcome.get("status") in status, outcome
    assert text in outcome["error"]


@both
@pytest.mark.parametrize(("call", "status", "text"), WRONG)
def test_triton_raises_what_was_wrong(
    triton: dict[str, Any], client: str, call: str, status: tuple[str, str], text: str
) -> None:
    assert_refused(triton[client][call], status, text)


@both
@pytest.mark.parametrize(("call", "status", "text"), WRONG_BUT_FOR_GRPC_NOT_YET)
def test_triton_raises_what_is_not_served(
    triton: dict[str, Any], client: str, call: str, status: tuple[str, str], text: str
) -> None:
    assert_refused(triton[client][call], status, text)


@both
def test_triton_finds_another_version_not_ready(triton: dict[str, Any], client: str) -> None:
    found = triton[client]["model ready in another version"]
    assert found.get("value") is False or found.get("status") in NOT_FOUND, found


def test_triton_finds_another_model_not_ready(triton: dict[str, Any]) -> None:
    for client in ("http", "grpc"):
        found = triton[client]["another model ready"]
        assert found.get("value") is False or found.get("status") in NOT_FOUND, found


UNSUPPORTED = [
    "config",
    "index",
    "load",
    "unload",
    "unload with dependents",
    "statistics",
    "statistics of all",
    "trace settings",
    "change trace settings",
    "log settings",
    "change log settings",
    "shared memory",
    "register shared memory",
    "unregister shared memory",
    "cuda memory",
    "register cuda memory",
    "unregister cuda memory",
]


@both
@pytest.mark.parametrize("call", UNSUPPORTED)
def test_triton_is_refused_what_only_triton_does(triton: dict[str, Any], client: str, call: str) -> None:
    assert triton[client][call].get("status") in ("404", "405", "StatusCode.UNIMPLEMENTED"), triton[client][call]


def test_triton_is_refused_streams_and_keeps_its_deadline(triton: dict[str, Any]) -> None:
    assert triton["grpc"]["stream infer"].get("status") == "StatusCode.UNIMPLEMENTED"
    assert triton["grpc"]["infer too late"].get("status") == "StatusCode.DEADLINE_EXCEEDED"


@both
def test_after_all_of_it_the_server_serves_on(triton: dict[str, Any], client: str) -> None:
    assert triton[client]["live at the end"] == triton[client]["ready at the end"] == {"value": True}
    assert [name for name, outcome in triton[client].items() if "crash" in outcome] == []
