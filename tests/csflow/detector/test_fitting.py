"""Every kind of detector: fitted, written, read again, and served by the engine as torch has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csflow.config import LineConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.detector.calibration import calibrate
from csflow.detector.detector import Detector
from csflow.detector.engine import Engine
from csflow.detector.fitting import fit_model, load_model
from csflow.detector.kinds.differnet import PooledFeatures, PooledFlowModel
from csflow.detector.model import Model, pooled, round_to_stored, save_model, score_stored
from csflow.errors import ConfigError, DataError, ModelError
from csflow.features.backbone import Backbone, load_backbone
from csflow.features.cache_manifest import CachedFeatures
from csflow.features.store import FeatureStore

SMALL = {
    "data": {"path": "images"},
    "features": {"image_size": 128},
    "flow": {"blocks": 2, "hidden": 8},
    "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "precision": "float32"},
    "patchcore": {"coreset": 0.2, "neighbours": 3},
    "padim": {"dimensions": 12},
}
NATIVE = {"features": {"image_size": 64, "stages": [2, 3, 5], "scales": 1}}
KINDS = {
    "csflow": {},
    "csflow-max-all": {"detector": "csflow", "scoring": {"score": "max", "map": "all"}},
    "csflow-nll": {"detector": "csflow", "scoring": {"score": "nll"}},
    "csflow-separate": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "fusion": "separate"}},
    "csflow-concatenated": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "fusion": "concatenated"}},
    "csflow-single": {"detector": "csflow", "flow": {"blocks": 2, "hidden": 8, "scales": [1]}},
    "nearest-neighbour": {},
    "mahalanobis": {},
    "padim": {},
    "padim-native": {"detector": "padim", **NATIVE},
    "patchcore": {},
    "patchcore-native": {"detector": "patchcore", **NATIVE},
    "differnet": {},
    "differnet-turned": {"detector": "differnet", "features": {"image_size": 128, "rotations": 4}},
}


def line_of(name: str) -> LineConfig:
    changes = {"detector": name, **KINDS[name]}
    return LineConfig.model_validate_json(json.dumps({"line": "small", **SMALL, **changes}))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("line")
    draw = np.random.default_rng(0)
    for folder, count in (("train/good", 12), ("test/good", 3)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(128 + 40 * draw.standard_normal((9, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(root / folder / f"{number}.png")
    return build_manifest(root, line="small", roles=line_of("csflow").roles)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))


def cached(store: FeatureStore, manifest: Manifest, line: LineConfig, backbone: Backbone) -> CachedFeatures:
    return store.extract(manifest, line.features, backbone).open(list(manifest.frame["sha256"]))


FAST = {"csflow-max-all", "csflow-concatenated", "mahalanobis", "patchcore-native"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
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


def test_differnet_sees_every_turn_of_an_image(manifest: Manifest) -> None:
    line = line_of("differnet-turned")
    turned, plain = load_backbone(line.features), load_backbone(line_of("csflow").features)
    images = torch.rand(2, 3, 128, 128)
    levels = turned([images, images[:, :, ::2, ::2]])
    assert len(levels) == 8
    for turn in range(4):
        expected = plain([torch.rot90(images, turn, (2, 3))])[0]
        torch.testing.assert_close(levels[2 * turn], expected, rtol=1e-4, atol=1e-4)


def test_differnet_scores_the_mean_over_turns(manifest: Manifest, store: FeatureStore, tmp_path: Path) -> None:
    line = line_of("differnet-turned")
    features = cached(store, manifest, line, load_backbone(line.features))
    model = fit_model(line, features, directory=tmp_path)
    assert isinstance(model, PooledFlowModel)
    pyramid = features.batch(range(4))
    expected = []
    with torch.inference_mode():
        for turn in range(4):
            latents, _ = model.flow([pooled(pyramid[3 * turn : 3 * turn + 3])[:, :, None, None]])
            expected.append(latents[0].square().mean(dim=(1, 2, 3)) / 2)
        scores, _ = model(pyramid)
    torch.testing.assert_close(scores, torch.stack(expected).mean(dim=0))


def test_pooled_features_are_a_vector_a_turn(manifest: Manifest, store: FeatureStore) -> None:
    line = line_of("differnet-turned")
    features = cached(store, manifest, line, load_backbone(line.features))
    vectors = PooledFeatures(features, 4)
    assert len(vectors) == 60
    (batch,) = vectors.batch([5, 0, 59])
    for row, (image, turn) in zip(batch, [(1, 1), (0, 0), (14, 3)], strict=True):
        expected = torch.cat([level.mean(dim=(1, 2)) for level in features[image][3 * turn : 3 * turn + 3]])
        torch.testing.assert_close(row[:, 0, 0], expected)


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
        ({"detector": "oracle"}, "csflow"),
    ],
)
def test_parts_that_do_not_fit_together(changes: dict[str, object], message: str) -> None:
    from csflow.config import parse_line_json

    with pytest.raises(ConfigError, match=message):
        parse_line_json(json.dumps({"line": "small", "data": {"path": "x"}, **changes}))
