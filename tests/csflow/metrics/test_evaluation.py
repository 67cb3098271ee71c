"""From scores, maps and masks to what a report tells."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from csflow.config import CalibrationConfig, RolesConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.detector.calibration import Calibration, calibrate
from csflow.detector.heatmap import upsample
from csflow.metrics import PIXEL_METRICS, binning_error, count_pixels
from csflow.metrics.evaluation import (
    MaskSequence,
    counted_pixels,
    measured_on,
    measured_with_error,
)
from csflow.reporting.assemble import evaluate_scores

DRAW = np.random.default_rng(3)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Six good images, four holes with masks, three cracks without."""
    root = tmp_path_factory.mktemp("images")
    for folder, count in (("train/good", 1), ("test/good", 6), ("test/hole", 4), ("test/crack", 3)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(DRAW.integers(0, 256, (24, 32), dtype=np.uint8)).save(root / folder / f"{number:03}.png")
    (root / "ground_truth/hole").mkdir(parents=True)
    for number in range(4):
        mask = np.zeros((24, 32), dtype=np.uint8)
        mask[3 * number : 3 * number + 6, 8:16] = 255
        Image.fromarray(mask).save(root / "ground_truth/hole" / f"{number:03}_mask.png")
    return build_manifest(root, line="tiles", roles=RolesConfig()).rows(role="test")


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    held_out = np.random.default_rng(1).uniform(0.1, 1.0, (40, 6, 8))
    return calibrate(held_out.mean(axis=(1, 2)), held_out, CalibrationConfig(alpha=0.1))


def maps_of(images: Manifest) -> np.ndarray:
    draw = np.random.default_rng(5)
    truth = np.stack([upsample(mask.astype(np.float32), (8, 6)) for mask in MaskSequence(images)])
    return (draw.uniform(0.1, 1.0, truth.shape) + truth).astype(np.float32)


def test_pixel_metrics_are_over_good_images_and_those_with_masks(judged: Manifest, calibrated: Calibration) -> None:
    maps = maps_of(judged)
    found = evaluate_scores(judged, maps.max(axis=(1, 2)), maps, calibrated)
    known = [i for i, defect in enumerate(judged.frame["defect"]) if defect != "crack"]
    masks = MaskSequence(judged)
    pixels = np.concatenate([upsample(maps[i], (32, 24)).ravel() for i in known])
    truth = np.concatenate([masks[i].ravel() for i in known])
    assert found.pixels is not None
    assert found.pixel_auroc == pytest.approx(
        roc_auc_score(truth, pixels), abs=found.pixels.error["pixel_auroc"] + 1e-9
    )
    assert set(found.pixels.by_defect) == {"hole"}
    rows = {row.defect: row for row in found.defects}
    assert set(PIXEL_METRICS) <= set(rows["hole"].metrics)
    assert not set(PIXEL_METRICS) & set(rows["crack"].metrics)
    assert set(found.metrics) > set(PIXEL_METRICS)


def test_what_is_measured_comes_with_the_bound_of_binning(judged: Manifest) -> None:
    maps = maps_of(judged)
    known = [i for i, defect in enumerate(judged.frame["defect"]) if defect != "crack"]
    masks = MaskSequence(judged)
    counts = count_pixels([maps[i] for i in known], [masks[i] for i in known])
    found = measured_with_error(judged, maps.max(axis=(1, 2)), maps)
    assert found.binning_error == binning_error(counts)
    assert min(found.binning_error.values()) > 0
    assert found.metrics == measured_on(judged, maps.max(axis=(1, 2)), maps)
    first, second = counted_pixels(judged, maps, np.exp(maps))
    np.testing.assert_array_equal(first.good, counts.good)
    np.testing.assert_array_equal(second.rows, counts.rows)


def test_maps_are_looked_at_and_not_copied(judged: Manifest) -> None:
    # Maps larger than all else: 13 of 4 MiB each.
    maps = np.random.default_rng(0).random((len(judged), 1024, 1024), dtype=np.float32)
    measured_with_error(judged, maps.max(axis=(1, 2)), maps_of(judged))  # what is imported on the way does not count
    scores = maps.max(axis=(1, 2))
    tracemalloc.start()
    counted_pixels(judged, maps)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < maps.nbytes / 5

    class Lazy(list[int]):
        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            return maps[index]

    lazy = Lazy(range(len(maps)))
    assert measured_on(judged, scores, lazy) == measured_on(judged, scores, maps)  # type: ignore[arg-type]


def test_examples_and_samples_carry_their_own_maps(judged: Manifest, calibrated: Calibration) -> None:
    maps = maps_of(judged)
    found = evaluate_scores(judged, maps.max(axis=(1, 2)), maps, calibrated)
    assert [example.result.kind for example in found.examples] == ["good", "crack", "hole"]
    paths = list(judged.frame["path"])
    for example in found.examples:
        np.testing.assert_array_equal(example.map2d, maps[paths.index(example.result.path)])
        assert example.image.size == (32, 24)
    assert {sample.result.path for sample in found.samples} <= set(paths)


def test_a_line_without_masks_has_no_pixel_metrics(judged: Manifest, calibrated: Calibration) -> None:
    chosen = (judged.frame["defect"] != "hole").to_numpy()
    images = Manifest(judged.frame[chosen].reset_index(drop=True), judged.root)
    maps = maps_of(images)
    found = evaluate_scores(images, maps.mean(axis=(1, 2)), maps, calibrated)
    assert found.pixels is None
    assert measured_with_error(images, maps.mean(axis=(1, 2)), maps).binning_error == {}
    assert counted_pixels(images, maps, maps) == ()
    assert found.pixel_auroc is None
    assert "pixel_auroc" not in found.metrics


def test_masks_are_read_one_by_one(judged: Manifest) -> None:
    masks = MaskSequence(judged)
    marked = [bool(mask.any()) for mask in masks]
    assert marked == list(judged.frame["mask"] != "")
    assert len(masks[2:5]) == 3
    assert masks[0].shape == (24, 32)


def test_nothing_to_judge_is_an_empty_evaluation(judged: Manifest, calibrated: Calibration) -> None:
    none = Manifest(judged.frame.iloc[:0], Path(judged.root))
    found = evaluate_scores(none, np.zeros(0, np.float32), np.zeros((0, 6, 8), np.float32), calibrated)
    assert (found.metrics, found.images, found.examples) == ({}, [], [])
