"""Compute metrics of image scores, over all images and for each type of defect, with their intervals.

How often a 95 % interval of :func:`bootstrap_interval` held the true value in simulations (400 each; binormal with
equal spread unless stated; in brackets the percentiles alone):

===================================  ============  ============  ============  ============
AUROC; good / defective images       AUROC         AP            F1            FPR at 95 %
===================================  ============  ============  ============  ============
0.99; 191 / 20                       1.00 (0.81)   1.00 (0.88)   1.00 (0.78)   1.00 (0.78)
0.99; 191 / 20, spread doubled       1.00 (0.57)   1.00 (0.75)   1.00 (0.78)   1.00 (0.74)
0.99; 191 / 5                        1.00 (0.66)   1.00 (0.80)   1.00 (0.78)   1.00 (0.37)
0.95; 191 / 20                       1.00 (0.87)   1.00 (0.94)   1.00 (0.81)   1.00 (0.75)
0.95; 191 / 20, spread doubled       1.00 (0.80)   0.99 (0.90)   1.00 (0.85)   0.69 (0.69)
0.988; 191 / 392                     0.96 (0.93)   0.92 (0.92)   0.82 (0.82)   0.98 (0.95)
0.9; 60 / 60                         0.97 (0.95)   0.90 (0.90)   0.79 (0.79)   0.95 (0.94)
0.8; 100 / 100                       0.94 (0.93)   0.92 (0.92)   0.80 (0.80)   0.95 (0.95)
===================================  ============  ============  ============  ============

So the interval of an AUROC is as reliable as it claims, and with few images it is too wide rather than too narrow; for
0.988 on 191 / 392 images it is 0.015 wide (percentiles alone: 0.013). With many images the interval of the best **F1**
contains the value that very many images would give in only four cases of five: a maximum over thresholds is biased
upwards, and in a resample even more so. The interval of the **FPR** is too narrow if the threshold is set by few
defective images, some of which score far below the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError
from csflow.metrics import ranking
from csflow.metrics.intervals import (
    Counts,
    Draws,
    Interval,
    Labels,
    Measured,
    PairedDifference,
    check_request,
    clopper_pearson,
    delong,
    draw,
    measured,
    paired_difference,
    resamples,
)
from csflow.metrics.ranking import Floats, Masses, Measure

ImageMetric = Literal["image_auroc", "average_precision", "f1_max", "fpr_at_95_tpr"]

IMAGE_METRICS: Mapping[ImageMetric, Measure] = {
    "image_auroc": ranking.auroc,
    "average_precision": ranking.precision_sum,
    "f1_max": ranking.best_f1,
    "fpr_at_95_tpr": partial(ranking.lowest_fpr, tpr=0.95),
}


class RocCurve(NamedTuple):
    """Rates when a score at or above a threshold counts as defective.

    Attributes:
        false_positive_rate: ``(K,)``, starting at 0.
        true_positive_rate: ``(K,)``, starting at 0.
        thresholds: ``(K,)``, starting at infinity.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats


def image_auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    r"""Return the probability that a defective image scores above a good one, ties counting half.

    .. math:: \frac{1}{PN} \sum_{i \in def} \sum_{j \in good} [s_i > s_j] + \tfrac12 [s_i = s_j]

    Args:
        scores: ``(n,)``; all equal gives 0.5.
        labels: ``(n,)``, True = defective.

    Raises:
        DataError: If a score is NaN, a class is missing or the lengths differ.
    """
    return float(ranking.auroc(_whole(*_checked(scores, labels)))[0])


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the sum of the precision at each distinct score, weighted by the recall gained there.

    It is scikit-learn's step sum. If all scores are equal, it is the share of defective images.

    Raises:
        DataError: As `image_auroc`.
    """
    return float(ranking.precision_sum(_whole(*_checked(scores, labels)))[0])


def f1_max(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the largest F1 over all thresholds, the best that hindsight can choose.

    Images with the same score are on the same side of a threshold.

    Raises:
        DataError: As `image_auroc`.
    """
    return float(ranking.best_f1(_whole(*_checked(scores, labels)))[0])


def fpr_at_tpr(scores: npt.ArrayLike, labels: npt.ArrayLike, *, tpr: float = 0.95) -> float:
    """Return the smallest false positive rate of a threshold that finds at least ``tpr`` of the defective images.

    A threshold is a score that occurs; nothing is interpolated between two. If all scores are equal, the rate is 1.

    Raises:
        DataError: As `image_auroc`, or if ``tpr`` is not in (0, 1].
    """
    if not 0 < tpr <= 1:
        raise DataError(f"A true positive rate is above 0 and at most 1, got {tpr}. Ask for 0.95, for instance.")
    return float(ranking.lowest_fpr(_whole(*_checked(scores, labels)), tpr)[0])


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> RocCurve:
    """Return the receiver operating characteristic, one point for each distinct score.

    Raises:
        DataError: If a score is NaN, a class is missing or the lengths differ.
    """
    values, defective = _checked(scores, labels)
    true, false = (np.cumsum(mass[0]) for mass in _whole(values, defective)[:2])
    return RocCurve(
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], np.unique(values)[::-1]]),
    )


def image_metrics(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> dict[ImageMetric, Measured]:
    """Measure every image metric with the interval of `bootstrap_interval`, all from the same resamples.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, True = defective.
        confidence: Of the two-sided intervals.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `bootstrap_interval`.
    """
    values, defective = _checked(scores, labels)
    return _measured(IMAGE_METRICS, values, defective, confidence, samples, seed)


def by_defect(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    defects: Sequence[str],
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[ImageMetric, Measured]]:
    """Measure `image_metrics` of each type of defect alone: its images against all good ones.

    Average precision and F1 depend on how many defective images there are: compare them within a type only. The
    interval of a type with a single image says nothing about other defects of that type.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, True = defective.
        defects: ``(n,)``, the type of each defective image; the entries of good images do not matter.
        confidence: Of the intervals.
        samples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The metrics by type, in alphabetical order.

    Raises:
        DataError: As `bootstrap_interval`, or if a type is missing.
    """
    values, defective = _checked(scores, labels)
    types = np.asarray(defects, dtype=np.str_)
    if types.shape != values.shape:
        raise DataError(f"Expected one type of defect for each score, got {types.size} for {values.size} scores.")
    kept = {str(kind): ~defective | (types == kind) for kind in np.unique(types[defective])}
    return {
        kind: image_metrics(values[rows], defective[rows], confidence=confidence, samples=samples, seed=seed)
        for kind, rows in kept.items()
    }


def bootstrap_interval(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    metric: ImageMetric = "image_auroc",
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Compute the interval of an image metric from resamples of good and of defective images.

    It is the percentile interval of the resamples, widened to include

    - the values that the same number of perfectly separated (or confused) images leaves possible, by Newcombe's score
      limit; see `csflow.metrics.intervals.measured`. The resamples of a good detector vary too little by themselves;
    - for the AUROC, the interval of DeLong on the scale of log odds (`csflow.metrics.intervals.delong`);
    - for the false positive rate, the exact interval of Clopper and Pearson at the threshold that was found.

    If all scores are equal, the detector says nothing: its AUROC is 0.5 without doubt.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, True = defective.
        metric: The metric.
        confidence: Of the two-sided interval.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `image_auroc`, or if the confidence is not between 0 and 1, or there is no resample.

    Reference:
        Efron and Tibshirani 1993; Newcombe, Statistics in Medicine 25 (2006), method 5; DeLong et al., Biometrics 44
        (1988).
    """
    values, defective = _checked(scores, labels)
    chosen = {metric: IMAGE_METRICS[metric]}
    return Interval(*_measured(chosen, values, defective, confidence, samples, seed)[metric][1:])


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    metric: ImageMetric = "image_auroc",
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Measure how much better the second detector separates than the first, on the same images.

    Every resample takes the same images for both, so that hard images cancel out. It knows only images that occurred:
    two detectors that both separate all of them perfectly differ by 0 in every resample, which says nothing about how
    much they would differ on others. `csflow.metrics.newcombe_limit` tells how little so few images can show.

    Args:
        first: Scores of the first detector ``(n,)``.
        second: Scores of the second detector for the same images, on any scale of its own.
        labels: ``(n,)``, True = defective.
        metric: The metric that is compared; for ``fpr_at_95_tpr`` less is better.
        confidence: Of the two-sided percentile interval.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `bootstrap_interval`, for either.
    """
    check_request(confidence, samples)
    before, defective = _checked(first, labels)
    after, _ = _checked(second, labels)
    chosen = {metric: IMAGE_METRICS[metric]}
    of_first, of_second = (_draws(chosen, values, defective, samples, seed)[metric] for values in (before, after))
    return paired_difference(of_first, of_second, confidence)


def _measured(
    metrics: Mapping[ImageMetric, Measure],
    values: Floats,
    defective: Labels,
    confidence: float,
    samples: int,
    seed: int,
) -> dict[ImageMetric, Measured]:
    check_request(confidence, samples)
    draws, whole = _draws(metrics, values, defective, samples, seed), _whole(values, defective)
    images = int((~defective).sum()), int(defective.sum())
    found = {name: measured(draws[name], measure, whole, images, confidence) for name, measure in metrics.items()}
    if "image_auroc" in found:
        found["image_auroc"] = _widened(found["image_auroc"], delong(whole, confidence))
    if "fpr_at_95_tpr" in found:
        alarms = round(found["fpr_at_95_tpr"].value * images[0])
        exact = clopper_pearson(alarms, images[0], confidence=confidence)
        found["fpr_at_95_tpr"] = _widened(found["fpr_at_95_tpr"], exact)
    return found


def _widened(found: Measured, other: Interval) -> Measured:
    return Measured(found.value, min(found.low, other.low), max(found.high, other.high))


def _draws(
    metrics: Mapping[ImageMetric, Measure], values: Floats, defective: Labels, samples: int, seed: int
) -> dict[ImageMetric, Draws]:
    return draw(metrics, _whole(values, defective), _resampled(values, defective, samples, seed))


def _resampled(values: Floats, defective: Labels, samples: int, seed: int) -> Iterator[Masses]:
    for counts in resamples(defective, samples, seed):
        yield _masses(values, defective, counts)


def _whole(values: Floats, defective: Labels) -> Masses:
    return _masses(values, defective, np.ones((1, values.size), dtype=np.int64))


def _masses(values: Floats, defective: Labels, counts: Counts) -> Masses:
    """Count the images at each distinct score, highest first; ``counts`` ``(k, n)`` says how often each counts."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    bad, good = (np.add.reduceat((counts * kind)[:, order], starts, axis=1) for kind in (defective, ~defective))
    return Masses(bad, good, bad)


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
    """Return scores in float64 and labels as booleans, or say why they have no metric."""
    values, defective = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if defective.size and not np.isin(defective, (0, 1)).all():
        raise DataError("Labels must be True (defective) or False (good).")
    defective = defective.astype(bool)
    if values.ndim != 1 or values.shape != defective.shape:
        raise DataError(f"Expected one label for each score, got scores {values.shape} and labels {defective.shape}.")
    if np.isnan(values).any():
        raise DataError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN. Train the detector again.")
    positives = int(defective.sum())
    if positives in (0, defective.size):
        raise DataError(
            f"Metrics need good and defective images, got {defective.size - positives} good and {positives} defective. "
            "Add test images of the missing kind."
        )
    return values, defective
