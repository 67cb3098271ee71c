"""Image metrics against scikit-learn, scipy and simulation, ties and hostile input included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from csflow.errors import DataError
from csflow.metrics import (
    IMAGE_METRICS,
    ImageMetric,
    average_precision,
    bootstrap_interval,
    by_defect,
    clopper_pearson,
    f1_max,
    fpr_at_tpr,
    image,
    image_auroc,
    image_metrics,
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


def fpr_at_95(labels: np.ndarray, scores: np.ndarray) -> float:
    fpr, tpr, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    return float(fpr[tpr >= 0.95].min())


def best_f1(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


ORACLES = {
    "image_auroc": oracle.roc_auc_score, "average_precision": oracle.average_precision_score,
    "f1_max": best_f1, "fpr_at_95_tpr": fpr_at_95,
}  # fmt: skip


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


@pytest.mark.parametrize("name", HOSTILE)
def test_average_precision_equals_scikit_learn(name: str) -> None:
    scores, labels = HOSTILE[name]
    assert average_precision(scores, labels) == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("name", HOSTILE)
def test_f1_max_equals_the_best_of_scikit_learns_curve(name: str) -> None:
    scores, labels = HOSTILE[name]
    assert f1_max(scores, labels) == pytest.approx(best_f1(labels, scores), abs=1e-12)


@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("name", HOSTILE)
def test_fpr_at_tpr_equals_scikit_learns_curve(name: str, tpr: float) -> None:
    scores, labels = HOSTILE[name]
    fpr, found, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    assert fpr_at_tpr(scores, labels, tpr=tpr) == pytest.approx(fpr[found >= tpr].min(), abs=1e-12)


def test_19_of_20_are_95_percent() -> None:
    scores = [*range(20), 0.5]
    assert fpr_at_tpr(scores, [True] * 20 + [False], tpr=0.95) == 0.0
    assert fpr_at_tpr(scores, [True] * 20 + [False], tpr=0.951) == 1.0


@pytest.mark.parametrize("tpr", [0.0, -1.0, 1.01, np.nan])
def test_an_impossible_rate_is_refused(tpr: float) -> None:
    with pytest.raises(DataError, match="true positive rate"):
        fpr_at_tpr([0, 1], [False, True], tpr=tpr)


def test_infinite_scores_count_like_very_large_ones_in_every_metric() -> None:
    scores, labels = sample(5, 30, 30)
    scores[::7], scores[3::11] = 100.0, -100.0
    infinite = np.where(np.abs(scores) == 100.0, scores * np.inf, scores)
    assert image_metrics(infinite, labels, samples=50) == image_metrics(scores, labels, samples=50)


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
    "measure",
    [
        image_auroc,
        average_precision,
        f1_max,
        fpr_at_tpr,
        roc_curve,
        bootstrap_interval,
        image_metrics,
        lambda s, y: by_defect(s, y, ["scratch"] * len(y)),
        lambda s, y: paired_bootstrap(s, s, y),
    ],
)
def test_unusable_input_is_named(measure: object, scores: list[float], labels: list[bool], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(scores, labels)  # type: ignore[operator]


@pytest.mark.parametrize("metric", ORACLES)
def test_each_resample_has_the_metric_of_its_images(metric: ImageMetric) -> None:
    scores, labels = HOSTILE["ties"]
    counts = np.concatenate(list(intervals.resamples(labels, 12, seed=0)))
    ours = IMAGE_METRICS[metric](image._masses(scores, labels, counts))
    theirs = [ORACLES[metric](np.repeat(labels, row), np.repeat(scores, row)) for row in counts]
    np.testing.assert_allclose(ours, theirs)
    assert (counts[:, labels].sum(axis=1) == labels.sum()).all()
    assert (counts.sum(axis=1) == labels.size).all()


def test_all_metrics_come_with_the_intervals_they_have_alone() -> None:
    scores, labels = HOSTILE["plain"]
    values = {"image_auroc": image_auroc, "average_precision": average_precision, "f1_max": f1_max,
              "fpr_at_95_tpr": fpr_at_tpr}  # fmt: skip
    measured = image_metrics(scores, labels, samples=100, seed=3)
    assert set(measured) == set(ORACLES)
    for name, (value, low, high) in measured.items():
        assert value == values[name](scores, labels)
        assert (low, high) == bootstrap_interval(scores, labels, metric=name, samples=100, seed=3)
        assert low < value < high


def test_the_interval_is_the_percentiles_of_the_resamples() -> None:
    scores, labels = HOSTILE["plain"]
    draws = [
        oracle.average_precision_score(np.repeat(labels, row), np.repeat(scores, row))
        for counts in intervals.resamples(labels, 40, seed=0)
        for row in counts
    ]
    assert intervals.newcombe_limit(40, 25, confidence=0.8) > np.quantile(draws, 0.1)  # nothing is widened here
    ours = bootstrap_interval(scores, labels, metric="average_precision", samples=40, confidence=0.8)
    assert ours == pytest.approx(tuple(np.quantile(draws, [0.1, 0.9])))


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


def coverage(true: float, images: tuple[int, int], spread: float, runs: int) -> tuple[float, float]:
    """How often the interval holds the true AUROC of a binormal detector, and the median width."""
    good, defective = images
    labels, rng = np.arange(good + defective) >= good, np.random.default_rng(1)
    shift = np.sqrt(1 + spread**2) * stats.norm.ppf(true)
    found = [
        bootstrap_interval(
            np.concatenate([rng.normal(size=good), shift + spread * rng.normal(size=defective)]), labels, samples=100
        )
        for _ in range(runs)
    ]
    ends = np.array(found)
    return float(((ends[:, 0] <= true) & (true <= ends[:, 1])).mean()), float(np.median(ends[:, 1] - ends[:, 0]))


GOOD_DETECTORS = [(0.99, (191, 20), 1), (0.99, (191, 5), 1), (0.95, (191, 20), 1), (0.99, (191, 20), 2),
                  (0.988, (191, 392), 1)]  # fmt: skip


@pytest.mark.parametrize(("true", "images", "spread"), GOOD_DETECTORS)
def test_the_interval_of_a_good_detector_holds_its_true_auroc(
    true: float, images: tuple[int, int], spread: float
) -> None:
    # The percentiles alone hold it in 57 to 93 % of such runs.
    assert coverage(true, images, spread, runs=60)[0] >= 0.90


@pytest.mark.slow
@pytest.mark.parametrize(
    ("true", "images", "spread"),
    [*GOOD_DETECTORS, (0.99, (20, 20), 1), (0.999, (191, 20), 1), (0.9, (60, 60), 1), (0.95, (30, 10), 2)],
)
def test_the_interval_holds_the_true_auroc_in_many_runs(true: float, images: tuple[int, int], spread: float) -> None:
    held, width = coverage(true, images, spread, runs=500)
    assert held >= 0.935
    if images == (191, 392):  # many images: hardly wider than the percentiles, whose median width is 0.013
        assert held <= 0.975
        assert width < 0.0165


@pytest.mark.parametrize("images", [(10, 10), (191, 20), (191, 392), (30, 4)])
@pytest.mark.parametrize("metric", ORACLES)
def test_an_interval_does_not_become_narrower_when_a_pair_is_inverted(
    metric: ImageMetric, images: tuple[int, int]
) -> None:
    good, defective = images
    scores, labels = np.arange(float(good + defective)), np.arange(good + defective) >= good
    inverted = scores.copy()
    inverted[[good - 1, good]] = scores[[good, good - 1]]
    assert image_auroc(inverted, labels) == pytest.approx(1 - 1 / (good * defective))
    perfect, other = (bootstrap_interval(s, labels, metric=metric) for s in (scores, inverted))
    assert other.high - other.low >= perfect.high - perfect.low
    assert other.low <= perfect.low
    assert other.high >= perfect.high


def test_delong_equals_the_variance_of_all_pairs() -> None:
    for name in ("plain", "ties"):
        scores, labels = HOSTILE[name]
        wins = np.sign(scores[labels][:, None] - scores[~labels][None]) / 2 + 0.5
        error = np.sqrt(wins.mean(1).var(ddof=1) / len(wins) + wins.mean(0).var(ddof=1) / wins.shape[1])
        auroc = oracle.roc_auc_score(labels, scores)
        odds = np.log(auroc / (1 - auroc)) + np.array([-1, 1]) * stats.norm.ppf(0.95) * error / (auroc * (1 - auroc))
        found = intervals.delong(image._whole(scores, labels), 0.9)
        assert found == pytest.approx(tuple(1 / (1 + np.exp(-odds))))


def test_delong_of_a_single_defective_image_does_not_fail() -> None:
    scores, labels = HOSTILE["unbalanced"]
    low, high = bootstrap_interval(scores, labels, samples=50)
    limit = intervals.newcombe_limit(500, 1)
    assert low <= limit < 1 - limit <= high


@pytest.mark.parametrize("images", [(1, 1), (4, 7), (191, 392)])
def test_newcombes_limit_solves_his_equation(images: tuple[int, int]) -> None:
    good, defective = images
    limit = intervals.newcombe_limit(good, defective, confidence=0.9)
    star = (good + defective) / 2 - 1
    variance = limit * (1 - limit) * (1 + star * ((1 - limit) / (2 - limit) + limit / (1 + limit))) / (good * defective)
    assert 1 - limit == pytest.approx(stats.norm.ppf(0.95) * np.sqrt(variance))


@pytest.mark.parametrize("images", [(0, 3), (3, 0)])
def test_a_limit_needs_images_of_both_kinds(images: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="both kinds"):
        intervals.newcombe_limit(*images)


SCORES, LABELS = HOSTILE["plain"]
INTERVALS = {
    "image_metrics": lambda **given: image_metrics(SCORES, LABELS, **given),
    "by_defect": lambda **given: by_defect(SCORES, LABELS, [""] * 65, **given),
    "bootstrap_interval": lambda **given: bootstrap_interval(SCORES, LABELS, **given),
    "paired_bootstrap": lambda **given: paired_bootstrap(SCORES, -SCORES, LABELS, **given),
}


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("given", [{"samples": 0}, {"samples": -3}, {"confidence": 0}, {"confidence": 1.5},
                                   {"confidence": 1.0}, {"confidence": np.nan}], ids=str)  # fmt: skip
def test_an_impossible_request_is_named(name: str, given: dict[str, float]) -> None:
    ((asked, value),) = given.items()
    expected = f"between 0 and 1, got {value}" if asked == "confidence" else f"at least one resample, got {value}"
    with pytest.raises(DataError, match=expected + r"\. Ask for"):
        INTERVALS[name](**given)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 1.5])
def test_an_impossible_confidence_of_a_rate_or_a_limit_is_named(confidence: float) -> None:
    for measure in (clopper_pearson, intervals.newcombe_limit):
        with pytest.raises(DataError, match="between 0 and 1"):
            measure(3, 10, confidence=confidence)  # type: ignore[operator]


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 - 0.3 is what the AP of equal rankings may differ by when it is summed in another order."""
    first = intervals.Draws(0.3, np.array([0.3, 0.6]))
    second = intervals.Draws(0.1 + 0.2, np.array([0.1 + 0.2, 0.6]))
    assert second.value - first.value != 0.0
    assert intervals.paired_difference(first, second, 0.95) == (0.0, 0.0, 0.0, 1.0)
    assert intervals.paired_difference(first, intervals.Draws(0.3 + 1e-9, first.resampled + 1e-9), 0.95).low > 0


def test_two_perfect_detectors_do_not_differ() -> None:
    scores = np.arange(20.0)
    assert paired_bootstrap(scores, scores**2, scores >= 10) == (0.0, 0.0, 0.0, 1.0)


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


@pytest.mark.parametrize(("sign", "events"), [(1, 0), (-1, 60)])
def test_the_other_metrics_of_perfect_images_are_those_at_the_limit_of_the_auroc(sign: int, events: int) -> None:
    labels = np.arange(90) >= 60
    measured = image_metrics(sign * np.arange(90.0), labels)
    far = {name: low if value == high else high for name, (value, low, high) in measured.items()}
    shift = np.sqrt(2) * stats.norm.ppf(far["image_auroc"])
    truth = np.arange(300_000) >= 200_000
    scores = np.random.default_rng(0).normal(size=truth.size) + shift * truth
    # The AP of few confused images lies above that at the limit already: nothing widens it.
    for name in ("image_auroc", "average_precision", "f1_max") if sign > 0 else ("image_auroc", "f1_max"):
        assert far[name] == pytest.approx(ORACLES[name](truth, scores), abs=0.005), name
    exact, simulated = clopper_pearson(events, 60), fpr_at_95(truth, scores)
    widest = max(exact.high, simulated) if sign > 0 else min(exact.low, simulated)
    assert far["fpr_at_95_tpr"] == pytest.approx(widest, abs=0.005)


def test_no_false_alarm_among_few_images_does_not_exclude_any() -> None:
    scores = np.concatenate([np.arange(20.0), [-1.0], np.arange(100.0, 199.0)])
    labels = np.arange(120) >= 20
    rate = image_metrics(scores, labels)["fpr_at_95_tpr"]
    assert rate.value == rate.low == 0.0
    assert rate.high >= clopper_pearson(0, 20).high > 0.1


def test_equal_scores_say_nothing_without_doubt() -> None:
    labels = np.arange(30) >= 20
    measured = image_metrics(np.zeros(30), labels)
    assert measured["image_auroc"] == (0.5, 0.5, 0.5)
    assert measured["average_precision"] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert measured["f1_max"] == pytest.approx((0.5, 0.5, 0.5))
    assert measured["fpr_at_95_tpr"].value == 1.0


def test_a_type_of_defect_is_measured_against_all_good_images() -> None:
    scores, labels = sample(6, 40, 30)
    defects = np.where(labels, np.array(["crack", "dent", "crack"])[np.arange(70) % 3], "")
    found = by_defect(scores, labels, list(defects), samples=200, seed=2)
    assert list(found) == ["crack", "dent"]
    for kind, measured in found.items():
        rows = ~labels | (defects == kind)
        assert measured == image_metrics(scores[rows], labels[rows], samples=200, seed=2)
        assert measured["image_auroc"].value == pytest.approx(oracle.roc_auc_score(labels[rows], scores[rows]))


def test_what_stands_at_good_images_is_no_type() -> None:
    scores, labels = sample(6, 10, 10)
    assert list(by_defect(scores, labels, ["good" if not bad else "crack" for bad in labels])) == ["crack"]


def test_a_missing_type_is_named() -> None:
    with pytest.raises(DataError, match="got 1 for 2"):
        by_defect([0, 1], [False, True], ["crack"])


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


@pytest.mark.parametrize("metric", ORACLES)
def test_a_detector_does_not_differ_from_itself_on_another_scale(metric: ImageMetric) -> None:
    scores, labels = sample(0)
    assert paired_bootstrap(scores, np.exp(scores), labels, metric=metric) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("metric", ORACLES)
def test_the_paired_difference_is_that_of_the_same_resamples(metric: ImageMetric) -> None:
    first, labels = sample(0, 30, 30)
    second = first + np.random.default_rng(1).normal(size=60)
    paired = paired_bootstrap(first, second, labels, metric=metric, samples=30, seed=4)
    rows = np.concatenate(list(intervals.resamples(labels, 30, seed=4)))
    draws = np.array(
        [
            ORACLES[metric](np.repeat(labels, row), np.repeat(second, row))
            - ORACLES[metric](np.repeat(labels, row), np.repeat(first, row))
            for row in rows
        ]
    ).round(12)
    assert paired.difference == pytest.approx(ORACLES[metric](labels, second) - ORACLES[metric](labels, first))
    assert (paired.low, paired.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-9)
    assert paired.p_value == pytest.approx(min(1, 2 * (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / 31))


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
