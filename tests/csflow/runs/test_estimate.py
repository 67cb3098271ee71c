"""What a run will take, held against what it then took."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import DataConfig, FeatureConfig, FlowConfig, LineConfig, TrainingConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CachedFeatures
from csflow.features.store import FeatureStore
from csflow.flow.training import fit_flow
from csflow.runs import estimate as module
from csflow.runs import trials as trying
from csflow.runs.estimate import estimate
from csflow.runs.trials import ExtractionTrial, FittingTrial, apart, try_extraction, try_fitting
from csflow.system.processes import peak_memory

LINE = LineConfig(
    line="bolts",
    data=DataConfig(path="data"),
    features=FeatureConfig(image_size=128),
    flow=FlowConfig(blocks=1, hidden=128),
    training=TrainingConfig(epochs=7, batch_size=4, device="cpu", precision="float32"),
)


@pytest.fixture
def bolts(tmp_path: Path) -> Manifest:
    draw = np.random.default_rng(0)
    for folder, count in (("train/good", 24), ("test/good", 3), ("test/bent", 3)):
        target = tmp_path / "images" / folder
        target.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(target / f"{index}.png")
    return build_manifest(tmp_path / "images", line="bolts", roles=LINE.roles)


def fitting(*, step_seconds: float | None = None, fit_seconds: float | None = None) -> FittingTrial:
    return FittingTrial(1.5, step_seconds, fit_seconds, score_seconds=0.25, checkpoint_bytes=40, peak=200)


def train_for_real(features: CachedFeatures, folder: Path) -> int:
    """Peak memory of this process after a training; runs in one of its own."""
    shape = features.shapes[0]
    fit_flow(features, LINE.flow, LINE.training, channels=shape[0], scales=len(features.shapes), directory=folder)
    return peak_memory()


def open_and_train(store: Path, manifest: Manifest, folder: Path) -> int:
    cached = FeatureStore(store).extract(manifest, LINE.features, load_backbone(LINE.features))
    return train_for_real(cached.open(list(manifest.rows(role="fit").frame["sha256"])), folder)


def test_the_reckoning(bolts: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {
        try_extraction: ExtractionTrial(start_seconds=3.0, image_seconds=0.5, peak=100),
        try_fitting: fitting(step_seconds=2.0),
    }
    monkeypatch.setattr(module, "apart", lambda work, *arguments: trials[work])
    store = FeatureStore(tmp_path / "store")
    expected = estimate(LINE, bolts, store.root)
    fitted = len(bolts.rows(role="fit"))
    assert (expected.images, expected.fitted, expected.to_extract) == (30, fitted, 30)
    assert expected.extraction_seconds == 3.0 + 30 * 0.5
    assert expected.training_seconds == 7 * -(-fitted // 4) * 2.0
    assert expected.extraction_memory == 100
    assert not store.root.exists(), "an estimate writes nothing into the store"

    some = Manifest(bolts.frame.iloc[:20], bolts.root)
    store.extract(some, LINE.features, load_backbone(LINE.features))
    after = estimate(LINE, bolts, store.root)
    assert (after.to_extract, after.features_bytes) == (10, expected.features_bytes)
    assert after.extraction_seconds == 3.0 + 10 * 0.5
    store.extract(bolts, LINE.features, load_backbone(LINE.features))
    assert estimate(LINE, bolts, store.root).extraction_seconds == 0.0


@pytest.mark.slow
def test_what_then_happens(bolts: Manifest, tmp_path: Path) -> None:
    expected = estimate(LINE, bolts, tmp_path / "store")
    assert expected.extraction_seconds > 0
    assert expected.training_seconds > 0
    peak = apart(open_and_train, tmp_path / "store", bolts, tmp_path / "work")
    assert expected.training_memory == pytest.approx(peak, rel=0.35), "the tracker is in one, the backbone in the other"
    written = [file for file in (tmp_path / "store").rglob("*") if len(file.name) == 64]
    assert len(written) == 30
    assert sum(file.stat().st_size for file in written) == expected.features_bytes == expected.new_features_bytes
    checkpoint = sum(file.stat().st_size for file in (tmp_path / "work").iterdir())
    assert checkpoint == pytest.approx(expected.checkpoint_bytes, rel=0.01)
    shutil.rmtree(tmp_path / "work")


@pytest.mark.parametrize(("kind", "epochs"), [("mahalanobis", False), ("patchcore", False), ("differnet", True)])
@pytest.mark.slow
def test_other_kinds_are_tried_too(kind: str, epochs: bool) -> None:
    line = LINE.model_copy(update={"detector": kind})
    trial = try_fitting(line, ((6, 4, 4), (6, 2, 2), (6, 1, 1)), 40)
    assert (trial.step_seconds is not None and trial.step_seconds > 0) is epochs
    assert (trial.fit_seconds is not None and trial.fit_seconds > 0) is not epochs
    assert (trial.checkpoint_bytes > 0) is epochs
    assert trial.score_seconds > 0


def test_kinds_without_epochs_are_extrapolated_by_what_two_sizes_took() -> None:
    assert trying._extrapolated([(32, 1.0, 0.1), (64, 4.0, 0.3)], 256) == pytest.approx((64.0, 1.5)), "by the square"
    assert trying._extrapolated([(32, 1.0, 0.1), (64, 9.0, 0.1)], 128) == pytest.approx((36.0, 0.1)), "and no more"
    assert trying._extrapolated([(32, 2.0, 0.2), (64, 1.0, 0.1)], 640) == pytest.approx((1.0, 0.1)), "never less"
    assert trying._extrapolated([(32, 1.0, 0.1), (50, 4.0, 0.3)], 50) == (4.0, 0.3), "all were fitted"
    assert trying._extrapolated([(20, 1.0, 0.1)], 20) == (1.0, 0.1)


def test_few_shots_are_few_steps(bolts: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = {
        try_extraction: ExtractionTrial(start_seconds=3.0, image_seconds=0.5, peak=100),
        try_fitting: fitting(fit_seconds=5.0),
    }
    monkeypatch.setattr(module, "apart", lambda work, *arguments: trials[work])
    few = LINE.model_copy(update={"roles": LINE.roles.model_copy(update={"shots": 5})})
    expected = estimate(few, bolts, tmp_path / "store")
    assert (expected.fitted, expected.training_seconds) == (5, 5.0)
