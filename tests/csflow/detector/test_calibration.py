"""The promises of the thresholds, checked by exact arithmetic, scipy and simulation."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate, required_images, threshold_rank
from csflow.detector.heatmap import MARK_POSITION
from csflow.errors import DataError, ModelError


def calibrated(scores: np.ndarray, alpha: float = 0.1, confidence: float | None = None) -> Calibration:
    maps = np.asarray(scores, dtype=float)[:, None, None] * np.array([[0.1, 0.2], [0.3, 1.0]])
    return calibrate(scores, maps, CalibrationConfig(alpha=alpha, confidence=confidence))


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    # In binary, (n + 1) * (1 - alpha) of several of these lands on the wrong side of the integer.
    [(9, 0.1, 9), (19, 0.1, 18), (19, 0.05, 19), (99, 0.01, 99), (99, 0.05, 95),
     (29, 0.1, 27), (49, 0.3, 35), (100, 0.05, 96)],
)  # fmt: skip
def test_the_conformal_rank_is_exact_in_decimals(n: int, alpha: float, rank: int) -> None:
    assert threshold_rank(n, alpha, None) == rank


def test_the_plain_float_formula_would_be_wrong_somewhere() -> None:
    cases = [(n, a / 100) for n in range(10, 400) for a in range(1, 50) if required_images(a / 100) <= n]
    naive = [math.ceil((n + 1) * (1 - alpha)) for n, alpha in cases]
    exact = [math.ceil(Fraction((n + 1) * (100 - round(100 * alpha)), 100)) for n, alpha in cases]
    assert [threshold_rank(n, alpha, None) for n, alpha in cases] == exact
    assert naive != exact


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999), (0.3, 3), (0.5, 1)])
def test_the_conformal_rule_needs_one_over_alpha_images(alpha: float, needed: int) -> None:
    assert required_images(alpha) == needed
    assert threshold_rank(needed, alpha, None) == needed
    with pytest.raises(DataError, match=f"at least {needed}"):
        threshold_rank(needed - 1, alpha, None)


@pytest.mark.parametrize(
    ("alpha", "confidence", "needed"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.1, 0.9, 22), (0.5, 0.75, 2)]
)
def test_the_tolerance_limit_needs_the_textbook_number_of_images(alpha: float, confidence: float, needed: int) -> None:
    assert required_images(alpha, confidence) == needed
    assert threshold_rank(needed, alpha, confidence) == needed
    with pytest.raises(DataError, match=f"at least {needed}"):
        threshold_rank(needed - 1, alpha, confidence)


@pytest.mark.parametrize(("alpha", "confidence"), [(0.05, 0.95), (0.1, 0.8), (0.25, 0.75), (0.5, 0.5)])
def test_the_tolerance_rank_is_the_smallest_that_keeps_the_promise(alpha: float, confidence: float) -> None:
    below = 1 - Fraction(repr(alpha))
    for n in range(required_images(alpha, confidence), 120, 7):
        tails = [math.comb(n, j) * below**j * (1 - below) ** (n - j) for j in range(n + 1)]
        exact = next(k for k in range(1, n + 1) if sum(tails[:k]) >= Fraction(repr(confidence)))
        assert threshold_rank(n, alpha, confidence) == exact


def test_the_tolerance_rank_agrees_with_the_beta_law_of_order_statistics() -> None:
    for n in (59, 100, 299, 1000, 5000):
        rank = threshold_rank(n, 0.05, 0.95)
        assert stats.beta.sf(0.95, rank, n - rank + 1) >= 0.95
        assert stats.beta.sf(0.95, rank - 1, n - rank + 2) < 0.95


@pytest.mark.parametrize("n", [19, 50, 148])
def test_by_simulation_the_conformal_promise_holds_on_average_and_is_tight(n: int) -> None:
    rng = np.random.default_rng(n)
    draws, alpha = 20_000, 0.1
    thresholds = np.sort(rng.exponential(size=(draws, n)), axis=1)[:, threshold_rank(n, alpha, None) - 1]
    false_alarms = np.exp(-thresholds)  # exact rate of an exponential score
    error = 4 * false_alarms.std() / math.sqrt(draws)
    assert alpha - 1 / (n + 1) - error <= false_alarms.mean() <= alpha + error


@pytest.mark.parametrize(("n", "alpha", "confidence"), [(59, 0.05, 0.95), (150, 0.05, 0.9), (40, 0.2, 0.8)])
def test_by_simulation_the_tolerance_promise_holds_for_the_very_threshold(
    n: int, alpha: float, confidence: float
) -> None:
    rng = np.random.default_rng(n)
    draws, rank = 20_000, threshold_rank(n, alpha, confidence)
    ordered = np.sort(rng.exponential(size=(draws, n)), axis=1)
    error = 4 * math.sqrt(confidence * (1 - confidence) / draws)
    assert (np.exp(-ordered[:, rank - 1]) <= alpha).mean() >= confidence - error
    assert (np.exp(-ordered[:, rank - 2]) <= alpha).mean() < confidence + error  # one rank lower breaks it


def test_the_conformal_rule_alone_would_break_the_tolerance_promise() -> None:
    rng = np.random.default_rng(0)
    ordered = np.sort(rng.exponential(size=(5000, 99)), axis=1)
    assert (np.exp(-ordered[:, threshold_rank(99, 0.05, None) - 1]) <= 0.05).mean() < 0.7


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.01])
def test_a_part_is_defective_exactly_if_its_p_value_is_at_most_alpha(alpha: float) -> None:
    rng = np.random.default_rng(3)
    for n in (99, 100, 119, 137):
        known = np.round(rng.normal(size=n), 1)  # many ties
        calibration = calibrated(known, alpha)
        for score in np.concatenate([known, np.round(rng.normal(size=200), 1), [known.max() + 1]]):
            p_value = calibration.p_value(score)
            assert p_value is not None
            assert (calibration.decide(score) == "defective") == (p_value <= alpha)


def test_regions_follow_the_same_rule_on_the_maxima_of_the_maps() -> None:
    rng = np.random.default_rng(0)
    scores, maps = rng.random(99), rng.random((99, 5, 4))
    calibration = calibrate(scores, maps, CalibrationConfig(alpha=0.05))
    assert calibration.threshold == np.sort(scores)[94]
    assert calibration.region_threshold == np.sort(maps.max(axis=(1, 2)))[94]
    assert (maps.max(axis=(1, 2)) > calibration.region_threshold).sum() == 4


@pytest.mark.parametrize(("width", "strongest"), [(0.05, 1.4), (0.3, 8.0), (1.0, 300.0), (2.0, 1e4)])
def test_the_colours_reach_from_the_median_pixel_to_the_strongest_drawn_defect(width: float, strongest: float) -> None:
    """Flat maps like those of PatchCore and steep ones like those of a flow use the same share of the colours."""
    maps = np.random.default_rng(0).lognormal(3.0, width, size=(50, 4, 4))
    region = calibrate(np.arange(50.0), maps, CalibrationConfig(alpha=0.1)).region_threshold
    assert region is not None
    reach = strongest * region
    scale = calibrate(np.arange(50.0), maps, CalibrationConfig(alpha=0.1), reach=reach).scale
    dark, mark, defect = scale.positions(np.array([[np.quantile(maps, 0.4), region, reach]]))[0]
    assert (dark, mark) == pytest.approx((0.0, MARK_POSITION), abs=0.03)
    assert defect == pytest.approx(0.9, abs=0.01)


def test_without_drawn_defects_the_colours_follow_the_spread_of_good_images() -> None:
    maps = np.random.default_rng(0).lognormal(3.0, 0.1, size=(50, 4, 4))
    flat = calibrate(np.arange(50.0), maps, CalibrationConfig(alpha=0.1)).scale
    steep = calibrate(np.arange(50.0), maps**4, CalibrationConfig(alpha=0.1)).scale
    assert flat.top / flat.mark == pytest.approx((flat.mark / flat.bottom) ** 3, rel=0.01)
    assert steep.top / steep.mark == pytest.approx((flat.top / flat.mark) ** 4, rel=0.05)


@pytest.mark.parametrize("reach", [None, 0.0, 1e-9, 5.0])
def test_constant_maps_and_deaf_detectors_still_give_a_usable_colour_scale(reach: float | None) -> None:
    for maps in (np.zeros((30, 2, 2)), np.full((30, 2, 2), 7.0)):
        for rule in (CalibrationConfig(alpha=0.1), "none"):
            calibration = calibrate(np.zeros(30), maps, rule, reach=reach)  # type: ignore[arg-type]
            bottom, mark, top = calibration.scale
            assert 0 < bottom < mark < top
            assert Calibration.from_json(calibration.to_json()).scale == calibration.scale


def test_without_calibration_there_are_scores_only() -> None:
    calibration = calibrate([1.0, 2.0], np.ones((2, 3, 3)), "none")
    assert calibration.decide(5.0) is calibration.p_value(5.0) is calibration.threshold is None
    assert "no false-alarm rate" in calibration.statement
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_the_statement_says_which_promise_holds_and_on_what_grounds() -> None:
    average = calibrated(np.arange(99.0), 0.05).statement
    sure = calibrated(np.arange(59.0), 0.05, 0.95).statement
    for part in ("5 %", "alpha = 0.05", "99 held-out", "on average"):
        assert part in average
    for part in ("95 % confidence", "5 %", "59 held-out", "tolerance"):
        assert part in sure


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_surprise_is_the_probability_of_so_many_false_alarms(confidence: float | None) -> None:
    rng = np.random.default_rng(0)
    rank = threshold_rank(60, 0.05, confidence)
    draws = np.array([(rng.random(40) > np.sort(rng.random(60))[rank - 1]).sum() for _ in range(20_000)])
    calibration = calibrated(np.arange(60.0), 0.05, confidence)
    for alarms in (0, 1, 3, 6):
        assert calibration.surprise(alarms, 40) == pytest.approx((draws >= alarms).mean(), abs=0.012)
    assert calibrate([1.0], np.ones((1, 1, 1)), "none").surprise(1, 2) is None


def test_a_score_that_is_no_number_never_passes_as_good() -> None:
    with pytest.raises(ModelError, match="not a number"):
        calibrated(np.arange(99.0)).decide(math.nan)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_json_brings_back_the_same_calibration(confidence: float | None) -> None:
    calibration = calibrated(np.random.default_rng(0).normal(size=60).astype(np.float32), 0.1, confidence)
    text = json.dumps(calibration.to_json(), allow_nan=False)
    assert json.loads(text)["n"] == 60
    assert Calibration.from_json(json.loads(text)) == calibration


def _changed(**changes: object) -> dict[str, object]:
    return {**calibrated(np.arange(30.0)).to_json(), **changes}


@pytest.mark.parametrize(
    "broken",
    [_changed(threshold=None), _changed(threshold="high"), _changed(n=31), _changed(kind="guess"), _changed(extra=1),
     _changed(scores=[1.0, float("nan")], n=2), {}],
)  # fmt: skip
def test_a_calibration_that_was_changed_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="alibrat"):
        Calibration.from_json(broken)


def test_too_few_images_say_how_many_are_needed() -> None:
    with pytest.raises(DataError, match=r"18 good images .* at most 5 % needs at least 19"):
        calibrated(np.arange(18.0), 0.05)


@pytest.mark.parametrize(
    ("scores", "maps", "message"),
    [([], np.zeros((0, 2, 2)), "at least one"), ([1.0], np.zeros((2, 2, 2)), "one score and one map"),
     ([math.inf], np.zeros((1, 2, 2)), "not finite"), ([1.0], np.full((1, 2, 2), np.nan), "4 calibration")],
)  # fmt: skip
def test_unusable_calibration_values_are_refused(scores: list[float], maps: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibrate(scores, maps, "none")
