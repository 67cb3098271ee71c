"""The smoke test finds every way in which an endpoint can differ from its detector."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.deployment.local_process import LocalEndpoint
from csflow.config import RolesConfig
from csflow.data.images import read_image
from csflow.data.manifest import build_manifest
from csflow.detector.detector import Detector
from csflow.errors import DeployError
from csflow.release.deployment import SAME_SCORE, sample_images, smoke_test
from csflow.system.workspace import Workspace

ENDPOINT = LocalEndpoint("tiles", "http://127.0.0.1:1", "127.0.0.1:2", 1, "s", "digest", "7", "the.log")
ENDPOINTS = LocalEndpoints(Workspace(Path("nowhere")))
Answers = list[dict[str, object]]


@pytest.fixture(scope="module")
def directory(make_detector: Callable[..., Path]) -> Path:
    return make_detector("tiles")


def honest(directory: Path, images: list[bytes]) -> Answers:
    predictions = Detector.load(directory).predict([read_image(image) for image in images])
    return [{"score": p.score, "decision": p.decision, "version": "7"} for p in predictions]


def test_an_honest_endpoint_passes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def score(_: LocalEndpoints, __: LocalEndpoint, images: list[bytes]) -> Answers:
        asked.append(len(images))
        return honest(directory, images)

    monkeypatch.setattr(LocalEndpoints, "score", score)
    smoke_test(ENDPOINTS, ENDPOINT, directory, [])
    assert sum(asked) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer | {"score": answer["score"] * (1 + 2 * SAME_SCORE)},
        lambda answer: answer | {"score": float("nan")},
        lambda answer: answer | {"decision": "good" if answer["decision"] == "defective" else "defective"},
        lambda answer: answer | {"decision": None},
        lambda answer: answer | {"version": "6"},
    ],
)
def test_a_difference_fails(
    directory: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    def altered(_: LocalEndpoints, __: LocalEndpoint, images: list[bytes]) -> Answers:
        *others, last = honest(directory, images)
        return [*others, change(last)]

    monkeypatch.setattr(LocalEndpoints, "score", altered)
    with pytest.raises(DeployError, match=r"Smoke test of http://127\.0\.0\.1:1 failed"):
        smoke_test(ENDPOINTS, ENDPOINT, directory, [])


def test_a_missing_answer_fails(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalEndpoints, "score", lambda _, __, images: honest(directory, images)[1:])
    with pytest.raises(DeployError, match="1 answers for 2 images"):
        smoke_test(ENDPOINTS, ENDPOINT, directory, [])


def test_samples_are_held_out_images_of_each_kind(tmp_path: Path) -> None:
    def draw(name: str, value: int) -> bytes:
        path, buffer = tmp_path / name, io.BytesIO()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), value).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
        return buffer.getvalue()

    train = [draw(f"train/good/{number}.png", number) for number in range(20)]
    good, bad = draw("test/good/a.png", 200), draw("test/hole/a.png", 210)
    manifest = build_manifest(tmp_path, line="tiles", roles=RolesConfig(calibrate=0.2, gate=0.3))
    first, second, third = sample_images(manifest)
    assert (second, third) == (good, bad)
    gate = manifest.rows(role="gate").frame["path"]
    assert isinstance(gate, pd.Series)
    assert first in train
    assert first == (tmp_path / gate.iloc[0]).read_bytes()
