"""Two detectors are compared by ranks, p-values and decisions, whatever the scales of their scores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
from csflow.reporting.comparison import (
    Comparison,
    PixelPair,
    Side,
    Views,
    compare_evaluations,
    judge_scores,
    views,
    write_comparison,
)
from csflow.reporting.findings import Evaluation

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


def test_two_evaluations_can_be_compared() -> None:
    one, two = side("one", SCORES), side("two", CHANGED)
    found = compare_evaluations(*(Evaluation("tiles", s.images, s.calibration) for s in (one, two)), names=("a", "b"))
    assert (found.line, found.champion.name, found.challenger.name) == ("tiles", "a", "b")
    assert found.changes == Comparison("tiles", one, two).changes


def test_each_map_is_painted_with_its_own_calibration() -> None:
    found = Comparison("tiles", side("one", SCORES), side("two", SCORES, scale=1000.0))
    picture, map2d = Image.new("RGB", (40, 30), "white"), np.full((3, 4), 10.0, np.float32)
    seen = views(picture, found, map2d, map2d)
    assert np.asarray(seen.champion).tolist() != np.asarray(picture).tolist()
    assert np.asarray(seen.challenger).tolist() == np.asarray(picture).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sides = side("version 1", SCORES), side("version <2>", CHANGED, 7.0)
    found = Comparison("tiles", *sides, verdict="It <is> better.", pixels=pixel_pair()[0])
    pictures = {index: Views(*[Image.new("RGB", (500, 300), "grey")] * 3) for index in found.shown()}
    return write_comparison(tmp_path_factory.mktemp("comparison") / "new", found, pictures)


def test_the_page_needs_nothing_from_outside_and_escapes_text(written: Path) -> None:
    page = written.read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "It &lt;is&gt; better." in page
    assert "<2>" not in page
    for heading in ("Pixel AUROC", "Pixel AP", "AUPRO", "By defect type", "their differences are off by at most"):
        assert heading in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) > 8
    assert all(source.startswith("data:image/") for source in sources)
    assert len(page) < 2_000_000


def test_the_files_hold_the_facts(written: Path) -> None:
    facts = json.loads((written.parent / "comparison.json").read_text())
    auroc = facts["metrics"]["image_auroc"]
    assert auroc["challenger"] == pytest.approx(image_auroc(CHANGED, TRUTH))
    assert auroc["difference"] == pytest.approx(auroc["challenger"] - auroc["champion"])
    pixels, hole = facts["pixel_metrics"]["pixel_ap"], facts["by_defect"]["hole"]
    assert pixels["difference"] == pytest.approx(pixels["challenger"] - pixels["champion"])
    assert pixels["binning_error"] > 0
    assert hole["difference"] == pytest.approx(auroc["difference"])
    assert hole["images"] == 20
    assert facts["decisions"]["mended"] + facts["decisions"]["spoilt"] == len(facts["changed"])
    assert [image["path"] for image in facts["images"]["champion"]] == [path for path, _ in IMAGES]
    for name in ("ranks.png", "roc.png", *(f"images/00003-{view}.png" for view in Views._fields)):
        assert Image.open(written.parent / name).size[0] > 100


def test_without_thresholds_or_defects_there_is_a_page_still(tmp_path: Path) -> None:
    none = calibrate(HELD_OUT, HELD_OUT[:, None, None], "none")
    good = IMAGES[:40]
    sides = [judge_scores(name, good, scores[:40], none) for name, scores in (("one", SCORES), ("two", CHANGED))]
    page = write_comparison(tmp_path, Comparison("tiles", *sides)).read_text()
    assert "not both have a threshold" in page
    assert "By defect type" not in page
    assert "Pixel" not in page
    assert not (tmp_path / "roc.png").exists()
