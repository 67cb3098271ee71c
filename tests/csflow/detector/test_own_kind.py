"""Adding a kind of detector is one module and one entry: fitted, saved, calibrated, as a graph, served."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csflow.ablation.groups import variants
from csflow.ablation.request import Request
from csflow.config import KINDS, DetectorKind, LineConfig, parse_line_json
from csflow.config.schema import line_schema
from csflow.data.images import read_image
from csflow.data.manifest import build_manifest
from csflow.detector.detector import Detector
from csflow.detector.engine import Engine
from csflow.detector.fitting import fit_model
from csflow.detector.model_file import save_model
from csflow.features.backbone import load_backbone
from csflow.features.store import FeatureStore
from csflow.runs.assembly import assemble
from csflow.runs.identity import detector_code

pytestmark = pytest.mark.slow

MEDIAN = DetectorKind("median", "Median", "tests.csflow.detector.median_kind", seeded=False)
ABOUT = """{"line": "plates", "detector": "median", "data": {"path": "x"}, "features": {"image_size": 128},
 "calibration": {"alpha": 0.1}}"""
SPOT = (slice(60, 84), slice(40, 70))


@pytest.fixture(scope="module")
def line() -> Iterator[LineConfig]:
    """A line that names the new kind: the entry is all that csflow is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, MEDIAN.name, MEDIAN)
        yield parse_line_json(ABOUT)


def draw(root: Path, name: str, number: int, *, spoilt: bool = False) -> None:
    pixels = np.random.default_rng(number).integers(100, 140, (128, 128, 3), dtype=np.uint8)
    if spoilt:
        pixels[SPOT] = 255
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own-kind") / "images"
    for number in range(60):
        draw(root, f"train/good/{number:02}.png", number)
    for number in range(60, 64):
        draw(root, f"test/good/{number}.png", number)
        draw(root, f"test/spot/{number}.png", number + 100, spoilt=True)
    return root


@pytest.fixture(scope="module")
def directory(line: LineConfig, images: Path) -> Path:
    """The detector directory, made by the steps that a run takes."""
    scratch = images.parent
    manifest = build_manifest(images, line=line.line, roles=line.roles)
    cached = FeatureStore(scratch / "features").extract(manifest, line.features, load_backbone(line.features))
    fitted = fit_model(line, cached.open(list(manifest.rows(role="fit").frame["sha256"])), directory=scratch)
    save_model(fitted, scratch / "model.safetensors")
    assemble(line, manifest, cached, scratch / "model.safetensors", {}).save(scratch / "detector")
    return scratch / "detector"


def test_it_is_read_again_and_its_graph_says_the_same(directory: Path, images: Path) -> None:
    pictures = [read_image(file) for file in sorted((images / "test").rglob("*.png"))]
    in_torch, in_onnx = Detector.load(directory).predict(pictures), Engine.load(directory).predict(pictures)
    for one, other in zip(in_torch, in_onnx, strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-4)
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, rtol=1e-3, atol=1e-4)


def test_its_score_is_that_of_the_module(line: LineConfig, directory: Path, images: Path) -> None:
    """By hand: distance to the median of the fitted images' features, its maximum over all positions."""
    backbone = load_backbone(line.features)
    detector = Detector.load(directory)
    picture = read_image(images / "test/spot/60.png")
    median = dict(detector.model.named_parameters())["median"]
    with torch.inference_mode():
        features = detector._extract([picture])[0]
        expected = (features - median).abs().mean(dim=1).max().item()
    assert detector.predict([picture])[0].score == pytest.approx(expected, rel=1e-5)
    assert backbone.fingerprint == detector.backbone.fingerprint


def test_it_is_calibrated_and_decides(directory: Path, images: Path) -> None:
    engine = Engine.load(directory)
    assert engine.calibration.threshold is not None
    found = {kind: engine.predict([read_image(f) for f in sorted((images / "test" / kind).iterdir())])
             for kind in ("good", "spot")}  # fmt: skip
    assert {each.decision for each in found["spot"]} == {"defective"}
    assert min(p.score for p in found["spot"]) > max(p.score for p in found["good"])


def test_it_is_served(directory: Path, images: Path) -> None:
    from csflow.adapters.serving import without_arguments

    with without_arguments():
        from csflow.adapters.serving.plane import Plane
    from csflow.adapters.serving.decoding import Decoder
    from csflow.adapters.serving.limits import Limits
    from csflow.adapters.serving.lines import Lines
    from csflow.adapters.serving.requests import images_of_instances
    from csflow.adapters.serving.scheduler import Scheduler
    from csflow.adapters.serving.served import ServedDetector

    buffer = io.BytesIO()
    read_image(images / "test/spot/61.png").save(buffer, "PNG")
    body = {"instances": [{"image": {"b64": base64.b64encode(buffer.getvalue()).decode()}, "boxes": True}]}
    lines, scheduler = Lines(), Scheduler(1, Decoder(Limits()), Limits())
    lines.serve({"plates": ServedDetector(directory, "1")})

    async def ask() -> dict[str, Any]:
        plane = Plane(lines, scheduler)
        return await plane.predict(await plane.line("plates"), images_of_instances(body), due=math.inf)

    (answer,) = asyncio.run(ask())["predictions"]
    scheduler.close()
    assert answer["decision"] == "defective"
    assert answer["boxes"], "the spot is found"


def test_the_rest_of_csflow_knows_it_from_the_entry(line: LineConfig) -> None:
    assert line_schema()["properties"]["detector"]["enum"][-1] == "median"
    planned = variants(Request(line=line, groups=("detectors",), seeds=(0, 1)))
    assert [v.line.training.seed for v in planned if v.name == "Median"] == [0], "deterministic: one seed"
    other = line.model_copy(update={"detector": "mahalanobis"})
    assert detector_code(line) != detector_code(other)
    assert line.training_digest() != other.training_digest()
