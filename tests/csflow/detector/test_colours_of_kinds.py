"""The maps of every kind of detector use the whole colour scale, fixed without any test image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import LineConfig
from csflow.data.images import read_image
from csflow.data.manifest import Manifest
from csflow.detector.detector import Detector
from csflow.detector.engine import Engine
from csflow.detector.fitting import fit_model
from csflow.detector.heatmap import MARK_POSITION, overlay
from csflow.detector.model_file import save_model
from csflow.features.backbone import load_backbone
from csflow.features.store import FeatureStore
from csflow.runs.assembly import assemble
from csflow.synthetic.paste import paste_defects
from tests.csflow.detector.small_line import SMALL

pytestmark = pytest.mark.slow

KINDS = ("csflow", "differnet", "padim", "patchcore", "nearest-neighbour", "mahalanobis")


def line_of(kind: str) -> LineConfig:
    options = {"line": "small", **SMALL, "detector": kind, "calibration": {"alpha": 0.4}, "roles": {"calibrate": 0.3}}
    return LineConfig.model_validate_json(json.dumps(options))


def made(kind: str, manifest: Manifest, store: FeatureStore, folder: Path) -> tuple[Detector, Manifest]:
    """Assemble a detector of a kind, as the step *evaluate* does, and tell which images it was calibrated on."""
    line = line_of(kind)
    roles = manifest.frame.assign(role=["calibrate"] * 4 + ["fit"] * 8 + ["test"] * (len(manifest) - 12))
    images = Manifest(roles, manifest.root)
    cached = store.extract(images, line.features, load_backbone(line.features))
    fitted = fit_model(line, cached.open(list(images.rows(role="fit").frame["sha256"])), directory=folder)
    save_model(fitted, folder / "model.safetensors")
    return assemble(line, images, cached, folder / "model.safetensors", {}), images.rows(role="calibrate")


@pytest.mark.parametrize("kind", KINDS)
def test_good_parts_are_dark_and_drawn_defects_reach_the_light_end(
    kind: str, manifest: Manifest, store: FeatureStore, tmp_path: Path
) -> None:
    detector, held_out = made(kind, manifest, store, tmp_path)
    scale = detector.calibration.scale
    good = [read_image(file) for file in held_out.files]
    drawn = [paste_defects([image], number)[0][0] for number, image in enumerate(good)]
    quiet = np.stack([scale.positions(p.anomaly_map) for p in detector.predict(good)])
    loud = np.stack([scale.positions(p.anomaly_map) for p in detector.predict(drawn)])
    assert np.median(quiet) < 0.2
    assert loud.max() == pytest.approx(0.9, abs=0.02) or scale.top == pytest.approx(1.25 * scale.mark, rel=1e-3)
    assert loud.max() > MARK_POSITION


def test_the_engine_paints_what_the_detector_paints(manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    detector, held_out = made("patchcore", manifest, store, tmp_path)
    detector.save(tmp_path / "detector")
    engine = Engine.load(tmp_path / "detector")
    assert engine.calibration.scale == detector.calibration.scale
    drawn = paste_defects([Image.open(held_out.files[0]).convert("RGB")], 0)[0]
    pictures = [
        np.asarray(overlay(drawn[0], found.anomaly_map, found_by.calibration.scale, None), dtype=int)
        for found_by in (detector, engine)
        for found in found_by.predict(drawn)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 3
