"""Image metrics against scikit-learn, scipy and simulation, ties and hostile input included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from csflow.errors import DataError
from csflow.metrics import (
    IMAGE_METRICS,
    bootstrap_interval,
    clopper_pearson,
    image,
    image_auroc,
    intervals,
    paired_bootstrap,
    roc_curve,
)


def sample(seed: int, good: int = 40, defective: int = 25, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(good + defective) >= good
    order = rng.permutation(labels.size)
    return rng.normal(size=labels.size)[order] + shift * labels[order], labels[order]


HOSTILE = {
    "plain": sample(0),
    "ties": (np.round(sample(1)[0]), sample(1)[1]),
    "all equal": (np.ones(6), np.array([0, 1, 0, 1, 1, 0], dtype=bool)),
    "reversed": (-sample(2, shift=9)[0], sample(2)[1]),
    "perfect": (np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True])),
    "one of each": (np.array([1.0, 0.0]), np.array([True, False])),
    "almost equal": (1 + np.finfo(float).eps * sample(3)[0].round(), sample(3)[1]),
    "huge and tiny": (np.array([1e308, -1e308, 1e-308, 0.0, -0.0]), np.array([1, 0, 1, 0, 1], dtype=bool)),
    "unbalanced": sample(4, good=500, defective=1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_image_auroc_equals_scikit_learn(name: str) -> None:
    scores, labels = HOSTILE[name]
    assert image_auroc(scores, labels) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_roc_curve_equals_scikit_learn(name: str) -> None:
    scores, labels = HOSTILE[name]
    for ours, theirs in zip(
        roc_curve(scores, labels), oracle.roc_curve(labels, scores, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(ours, theirs)


def test_infinite_scores_are_ranked() -> None:
    assert image_auroc([np.inf, -np.inf, 0.0, np.inf], [True, False, False, False]) == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [([np.nan, 1], [True, False], "1 of 2 scores are NaN"), ([1, 2], [True, True], "0 good and 2 defective"),
     ([1, 2], [False, False], "2 good and 0 defective"), ([], [], "0 good and 0"),
     ([1, 2, 3], [True, False], "one label"),
     ([1, 2], [2, 0], "True")],
)  # fmt: skip
@pytest.mark.parametrize(
    "measure", [image_auroc, roc_curve, bootstrap_interval, lambda s, y: paired_bootstrap(s, s, y)]
)
def test_unusable_input_is_named(measure: object, scores: list[float], labels: list[bool], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(scores, labels)  # type: ignore[operator]


def test_each_resample_has_the_auroc_of_its_images() -> None:
    scores, labels = HOSTILE["ties"]
    counts = np.concatenate(list(intervals.resamples(labels, 30, seed=0)))
    ours = IMAGE_METRICS["image_auroc"](image._masses(scores, labels, counts))
    theirs = [oracle.roc_auc_score(np.repeat(labels, row), np.repeat(scores, row)) for row in counts]
    np.testing.assert_allclose(ours, theirs)
    assert (counts[:, labels].sum(axis=1) == labels.sum()).all()


def test_the_interval_does_not_depend_on_the_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = HOSTILE["plain"]
    whole = bootstrap_interval(scores, labels, samples=50, seed=1)
    monkeypatch.setattr(intervals, "_PORTION", 200)
    assert bootstrap_interval(scores, labels, samples=50, seed=1) == whole
    assert bootstrap_interval(scores, labels, samples=50, seed=2) != whole


def test_the_interval_covers_the_true_auroc_as_often_as_it_says() -> None:
    true = stats.norm.cdf(1 / np.sqrt(2))
    hits = 0
    for seed in range(120):
        low, high = bootstrap_interval(*sample(seed, 60, 60), samples=200)
        hits += low <= true <= high
    assert 0.90 <= hits / 120 <= 0.99


@pytest.mark.parametrize("images", [(4, 4), (20, 20), (191, 392)])
def test_a_perfect_separation_is_not_certain(images: tuple[int, int]) -> None:
    good, defective = images
    scores = np.arange(good + defective)
    low, high = bootstrap_interval(scores, scores >= good)
    assert high == 1.0
    # A detector at the limit would rarely separate this well (bi-normal simulation).
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * stats.norm.ppf(low)
    draws = rng.normal(size=(4000, good)).max(axis=1) < (rng.normal(size=(4000, defective)) + shift).min(axis=1)
    assert draws.mean() < 0.06
    mirrored = bootstrap_interval(-scores, scores >= good)
    assert mirrored == pytest.approx((0.0, 1 - low))


def test_few_perfect_images_do_not_exclude_chance() -> None:
    assert bootstrap_interval([0, 1, 2], [False, True, True]).low < 0.5
    assert bootstrap_interval(range(10), np.arange(10) >= 5).low > 0.5


def test_the_paired_difference_knows_that_the_images_are_the_same() -> None:
    scores, labels = sample(0, 100, 100)
    worse = scores - 0.3 * labels
    paired = paired_bootstrap(scores, worse, labels)
    expected = oracle.roc_auc_score(labels, worse) - oracle.roc_auc_score(labels, scores)
    assert paired.difference == pytest.approx(expected)
    assert paired.low <= paired.difference <= paired.high < 0
    assert paired.p_value < 0.01
    unpaired = bootstrap_interval(worse, labels)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_a_detector_does_not_differ_from_itself_on_another_scale() -> None:
    scores, labels = sample(0)
    assert paired_bootstrap(scores, np.exp(scores), labels) == (0.0, 0.0, 0.0, 1.0)


def test_the_paired_p_value_is_rarely_small_when_both_are_equally_good() -> None:
    rng = np.random.default_rng(0)
    small = 0
    for seed in range(120):
        scores, labels = sample(seed, 50, 50)
        first, second = scores + 0.7 * rng.normal(size=(2, 100))
        small += paired_bootstrap(first, second, labels, samples=200).p_value <= 0.05
    assert small / 120 <= 0.10


@pytest.mark.parametrize(("events", "trials"), [(0, 10), (10, 10), (3, 40), (1, 1), (0, 1), (17, 333)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_clopper_pearson_equals_scipy(events: int, trials: int, confidence: float) -> None:
    theirs = stats.binomtest(events, trials).proportion_ci(confidence, method="exact")
    assert clopper_pearson(events, trials, confidence=confidence) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("events", "trials"), [(0, 0), (2, 1), (-1, 3)])
def test_impossible_counts_are_refused(events: int, trials: int) -> None:
    with pytest.raises(DataError, match="trials"):
        clopper_pearson(events, trials)
