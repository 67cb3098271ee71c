"""Every kind of detector: what is fitted is what is read and served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.data.manifest import Manifest
from csflow.detector.calibration import calibrate
from csflow.detector.detector import Detector
from csflow.detector.engine import Engine
from csflow.detector.fitting import fit_model
from csflow.detector.model import Model, score_stored
from csflow.detector.model_file import load_model, round_to_stored, save_model
from csflow.errors import ConfigError, DataError, ModelError
from csflow.features.backbone import load_backbone
from csflow.features.store import FeatureStore
from tests.csflow.detector.small_line import VARIANTS, cached, line_of

FAST = {"csflow-concatenated", "mahalanobis", "patchcore-native"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_what_is_fitted_is_what_is_read_and_served(
    name: str, manifest: Manifest, store: FeatureStore, tmp_path: Path
) -> None:
    line = line_of(name)
    backbone = load_backbone(line.features)
    fitted = cached(store, manifest.rows(split="train"), line, backbone)
    features = cached(store, manifest.rows(split="test"), line, backbone)
    model = fit_model(line, fitted, directory=tmp_path / "work")
    round_to_stored(model)
    save_model(model, tmp_path / "model.safetensors")
    scores, maps = score_stored(model, features)
    again, _ = score_stored(load_model(tmp_path / "model.safetensors", line, features.shapes), features)
    np.testing.assert_array_equal(again, scores)
    assert scores.shape == (3,)
    assert maps.shape == (3, *features.shapes[1 if name == "csflow-single" else 0][1:])
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0

    calibration = calibrate(scores, maps, "none")
    Detector(line, backbone, model, calibration, {}).save(tmp_path / "detector")  # refuses a graph that disagrees
    images = [Image.open(file).convert("RGB") for file in manifest.rows(split="test").files]
    served = np.array([prediction.score for prediction in Engine.load(tmp_path / "detector").predict(images)])
    np.testing.assert_allclose(served, scores, rtol=5e-3)  # the store holds features in half precision
    loaded = Detector.load(tmp_path / "detector").predict(images[:2])
    np.testing.assert_allclose([prediction.score for prediction in loaded], served[:2], rtol=1e-3)


@pytest.mark.parametrize("name", ["csflow", "patchcore", "padim", "mahalanobis", "nearest-neighbour", "differnet"])
def test_a_file_of_another_kind_is_refused(name: str, manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    line = line_of(name)
    features = cached(store, manifest, line, load_backbone(line.features))
    save_model(fit_model(line, features, directory=tmp_path / "work"), tmp_path / "model.safetensors")
    other = line_of("mahalanobis" if name != "mahalanobis" else "padim")
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_model(tmp_path / "model.safetensors", other, features.shapes)
    narrower = tuple((channels // 2, height, width) for channels, height, width in features.shapes)
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_model(tmp_path / "model.safetensors", line, narrower)


def test_an_image_that_was_fitted_can_be_an_example(manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    """Its distance to itself is nearly nothing, of which no relative error can be asked."""
    line = line_of("nearest-neighbour")
    backbone = load_backbone(line.features)
    features = cached(store, manifest, line, backbone)
    model = fit_model(line, features, directory=tmp_path)
    round_to_stored(model)
    calibration = calibrate(*score_stored(fit_model(line, features, directory=tmp_path), features), "none")
    images = [Image.open(file).convert("RGB") for file in manifest.files[:3]]
    other = calibrate(np.array([5.0, 9.0]), np.ones((2, 4, 4)), "none")
    assert calibration.n == 15
    Detector(line, backbone, model, other, {}).save(tmp_path / "detector", examples=images)


def test_nothing_to_fit(manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    line = line_of("mahalanobis")
    empty = store.extract(manifest, line.features, load_backbone(line.features)).open([])
    with pytest.raises(DataError, match="no images to fit"):
        fit_model(line, empty, directory=tmp_path)


def test_every_model_is_a_module_of_its_own() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Model()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": {"stages": [2, 3], "scales": 1}}, "features.stages is not for detector csflow"),
        ({"features": {"rotations": 4}}, "features.rotations is for detector differnet"),
        ({"flow": {"scales": [2, 3]}}, "needs features.scales above 3"),
        ({"flow": {"scales": [1, 1]}}, "each once"),
        ({"flow": {"scales": [0, 2]}}, "leaves one out"),
        ({"detector": "padim", "features": {"stages": [3, 2], "scales": 1}}, "ascending numbers"),
        ({"detector": "padim", "features": {"stages": [2, 3]}}, "needs scales: 1"),
        ({"roles": {"calibrate": 0.0}}, "set 'calibration: none' too"),
        ({"detector": "oracle"}, "unknown kind of detector. Known kinds: csflow, nearest-neighbour, "),
        ({"detector": "patchcor"}, "Did you mean 'patchcore'"),
    ],
)
def test_parts_that_do_not_fit_together(changes: dict[str, object], message: str) -> None:
    from csflow.config import parse_line_json

    with pytest.raises(ConfigError, match=message):
        parse_line_json(json.dumps({"line": "small", "data": {"path": "x"}, **changes}))
