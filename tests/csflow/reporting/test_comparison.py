"""Two detectors are compared by ranks, p-values and decisions, whatever the scales of their scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate
from csflow.errors import DataError
from csflow.metrics import (
    binning_error,
    count_pixels,
    image_auroc,
    paired_bootstrap,
    paired_pixel_bootstrap,
    pixel_auroc,
)
from csflow.reporting.comparison import Comparison, PixelPair, Side, judge_scores

DRAW = np.random.default_rng(0)
IMAGES = [(f"test/good/{i}.png", "") for i in range(40)] + [(f"test/hole/{i}.png", "hole") for i in range(20)]
TRUTH = np.arange(60) >= 40
HELD_OUT = DRAW.random(99)
SCORES = np.concatenate([DRAW.random(40), 0.7 + DRAW.random(20)])


def calibration(scale: float = 1.0) -> Calibration:
    return calibrate(scale * HELD_OUT, scale * HELD_OUT[:, None, None] * np.ones((2, 2)), CalibrationConfig(alpha=0.05))


def side(name: str, scores: np.ndarray, scale: float = 1.0) -> Side:
    return judge_scores(name, IMAGES, scale * scores, calibration(scale))


CHANGED = SCORES.copy()
CHANGED[[3, 41, 42]] = [1.4, 0.2, 1.5]
CHANGED[45] = 5.0


def test_a_different_scale_is_no_difference() -> None:
    same = Comparison("tiles", side("one", SCORES), side("two", SCORES, scale=1000.0))
    assert same.changes == []
    assert same.decision_p_value is None
    assert {(d.difference, d.low, d.high) for d in same.differences.values()} == {(0.0, 0.0, 0.0)}
    np.testing.assert_array_equal(same.champion.ranks, same.challenger.ranks)
    assert same.champion.threshold_rank == same.challenger.threshold_rank
    assert same.moved() == []


def test_ranks_are_scipys_with_ties_shared() -> None:
    scores = np.repeat([3.0, 1.0, 2.0], 20)
    ranks = side("one", scores).ranks
    np.testing.assert_allclose(ranks, (stats.rankdata(scores) - 1) / 59)
    assert np.unique(ranks).size == 3


def test_the_threshold_lies_between_the_ranks_it_parts() -> None:
    one = side("one", SCORES)
    called = np.array([result.decision == "defective" for result in one.images])
    assert one.threshold_rank is not None
    assert one.ranks[~called].max() < one.threshold_rank < one.ranks[called].min()


def test_changed_decisions_are_sorted_spoilt_first() -> None:
    found = Comparison("tiles", side("one", SCORES), side("two", CHANGED, scale=7.0))
    before = [r.decision for r in side("one", SCORES).images]
    after = [r.decision for r in side("two", CHANGED, scale=7.0).images]
    expected = {i for i in range(60) if before[i] != after[i]}
    assert {change.index for change in found.changes} == expected
    assert {change.index for change in found.changes if not change.is_mended} == {3, 41} & expected
    verdicts = [change.is_mended for change in found.changes]
    assert verdicts == sorted(verdicts)
    assert found.spoilt + found.mended == len(expected)
    assert found.decision_p_value == stats.binomtest(found.spoilt, len(expected)).pvalue
    assert not set(found.moved()) & expected
    assert found.shown(2) == [change.index for change in found.changes][:2]


def test_differences_are_challenger_minus_champion() -> None:
    found = Comparison("tiles", side("one", SCORES), side("two", CHANGED, scale=7.0))
    expected = image_auroc(CHANGED, TRUTH) - image_auroc(SCORES, TRUTH)
    assert found.differences["image_auroc"].difference == pytest.approx(expected)
    for name, (champion, challenger) in found.values.items():
        assert found.differences[name].difference == pytest.approx(challenger - champion), name


def pixel_pair() -> tuple[PixelPair, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(7)
    masks = [np.zeros((12, 12), dtype=bool) for _ in IMAGES]
    for mask in masks[40:]:
        mask[2:6, 3:8] = True
    before = [draw.normal(size=(12, 12)) + mask for mask in masks]
    after = [m + 0.5 * mask for m, mask in zip(before, masks, strict=True)]
    return PixelPair(count_pixels(before, masks), count_pixels(after, masks)), before, after, masks


def test_maps_are_compared_where_masks_exist() -> None:
    pair, before, after, masks = pixel_pair()
    found = Comparison("tiles", side("one", SCORES), side("two", CHANGED), pixels=pair)
    for name, paired in found.pixel_differences.items():
        assert paired == paired_pixel_bootstrap(*pair, metric=name)
        assert paired.difference == pytest.approx(found.pixel_values[name][1] - found.pixel_values[name][0])
        assert found.binning_error[name] == sum(binning_error(counts)[name] for counts in pair)
    exact = pixel_auroc(after, masks) - pixel_auroc(before, masks)
    bound = found.binning_error["pixel_auroc"]
    assert found.pixel_differences["pixel_auroc"].difference == pytest.approx(exact, abs=bound)
    without = Comparison("tiles", side("one", SCORES), side("two", CHANGED))
    assert not any((without.pixel_differences, without.pixel_values, without.binning_error))


def test_each_type_of_defect_is_compared_against_all_good_images() -> None:
    images = [(path, "dent" if i % 2 and defect else defect) for i, (path, defect) in enumerate(IMAGES)]
    one, two = (judge_scores(str(i), images, scores, calibration()) for i, scores in enumerate((SCORES, CHANGED)))
    found = Comparison("tiles", one, two)
    assert list(found.by_defect) == ["dent", "hole"]
    for kind, row in found.by_defect.items():
        rows = np.array([defect in ("", kind) for _, defect in images])
        assert row.images == 10
        assert row.champion == image_auroc(SCORES[rows], TRUTH[rows])
        assert row.challenger == image_auroc(CHANGED[rows], TRUTH[rows])
        assert row.paired == paired_bootstrap(SCORES[rows], CHANGED[rows], TRUTH[rows])


def test_different_images_are_refused() -> None:
    one, two = side("one", SCORES), side("two", SCORES)
    for images in (two.images[::-1], two.images[1:], [replace(two.images[0], label="defective"), *two.images[1:]]):
        with pytest.raises(DataError, match="same images"):
            Comparison("tiles", one, two._replace(images=images))
    with pytest.raises(DataError, match="same images"):
        Comparison("tiles", one._replace(images=[]), two._replace(images=[]))
