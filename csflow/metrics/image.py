"""Metrics of image scores, over all images and for each type of defect."""

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
    clopper_pearson,
    draw,
    paired_difference,
    percentiles,
    resamples,
    separated,
)
from csflow.metrics.ranking import Floats, Masses, Measure

ImageMetric = Literal["image_auroc", "average_precision", "f1_max", "fpr_at_95_tpr"]

IMAGE_METRICS: Mapping[ImageMetric, Measure] = {
    "image_auroc": ranking.auroc,
    "average_precision": ranking.average_precision,
    "f1_max": ranking.f1_max,
    "fpr_at_95_tpr": partial(ranking.fpr_at_tpr, tpr=0.95),
}


class RocCurve(NamedTuple):
    """Rates ``(K,)`` when a score at or above ``thresholds`` counts as defective; starts at (0, 0) and inf."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats


def image_auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    r"""Probability that a defective image scores above a good one, ties counting half.

    .. math:: \frac{1}{PN} \sum_{i \in def} \sum_{j \in good} [s_i > s_j] + \tfrac12 [s_i = s_j]

    Args:
        scores: ``(n,)``; all equal gives 0.5.
        labels: ``(n,)``, True = defective.

    Raises:
        DataError: If a score is NaN, a class is missing or the lengths differ.
    """
    return float(ranking.auroc(_whole(*_checked(scores, labels)))[0])


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Precision at each distinct score, weighted by the recall gained there; scikit-learn's step sum.

    All scores equal gives the share of defective images.

    Raises:
        DataError: As `image_auroc`.
    """
    return float(ranking.average_precision(_whole(*_checked(scores, labels)))[0])


def f1_max(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Largest F1 over all thresholds, the best that hindsight can choose. Images of one score fall on one side.

    Raises:
        DataError: As `image_auroc`.
    """
    return float(ranking.f1_max(_whole(*_checked(scores, labels)))[0])


def fpr_at_tpr(scores: npt.ArrayLike, labels: npt.ArrayLike, *, tpr: float = 0.95) -> float:
    """Smallest false positive rate of a threshold that finds at least ``tpr`` of the defective images.

    A threshold is a score that occurs; nothing is interpolated between two. All scores equal gives 1.

    Raises:
        DataError: As `image_auroc`, or if ``tpr`` is not in (0, 1].
    """
    if not 0 < tpr <= 1:
        raise DataError(f"A true positive rate lies above 0 and at most at 1, got {tpr}. Ask for 0.95, for instance.")
    return float(ranking.fpr_at_tpr(_whole(*_checked(scores, labels)), tpr)[0])


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> RocCurve:
    """Receiver operating characteristic, one point for each distinct score.

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
    """Every image metric with its interval, all from the same resamples.

    The intervals are those of `bootstrap_interval`.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, True = defective.
        confidence: Of the two-sided percentile intervals.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `image_auroc`.
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
    """`image_metrics` of each type of defect alone: its images against all good ones.

    Average precision and F1 depend on how many defective images there are: compare them within a type only. The
    interval of a type with a single image says nothing about other defects of that type.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, True = defective.
        defects: ``(n,)``, the type of each defective image; what stands at a good one does not matter.
        confidence: Of the intervals.
        samples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The types in alphabetical order.

    Raises:
        DataError: As `image_auroc`, or if a type is missing.
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
    """Percentile interval of an image metric; good and defective images are resampled separately.

    Perfectly separated scores stay so in every resample, as if nothing were uncertain. There the far end is
    Newcombe's score limit instead, which depends on the number of images; see
    `csflow.metrics.intervals.separated`. A false positive rate of 0 or 1 reaches at least to the limit of
    Clopper and Pearson. All scores equal is a detector that says nothing: its AUROC is 0.5 without doubt.

    Raises:
        DataError: As `image_auroc`.

    Reference:
        Efron and Tibshirani 1993; Newcombe, Statistics in Medicine 25 (2006), method 5.
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
    """How much better the second detector separates than the first, on the same images.

    Every resample takes the same images for both, so what makes an image hard cancels out.

    Args:
        first: Scores of the first detector ``(n,)``.
        second: Scores of the second detector for the same images, on any scale of its own.
        labels: ``(n,)``, True = defective.
        metric: What is compared; of ``fpr_at_95_tpr`` less is better.
        confidence: Of the two-sided percentile interval.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `image_auroc`, for either.
    """
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
    draws = _draws(metrics, values, defective, samples, seed)
    measured = {name: Measured(found.value, *percentiles(found.resampled, confidence)) for name, found in draws.items()}
    whole = _whole(values, defective)
    if ranking.is_separated(whole):
        images = int(whole.good.sum()), int(whole.defective.sum())
        measured = {name: separated(measure, whole, images, confidence) for name, measure in metrics.items()}
    if "fpr_at_95_tpr" in measured:
        measured["fpr_at_95_tpr"] = _doubtful_rate(measured["fpr_at_95_tpr"], int((~defective).sum()), confidence)
    return measured


def _doubtful_rate(rate: Measured, images: int, confidence: float) -> Measured:
    """No false alarm among few images does not mean that there never is one."""
    if rate.value not in (0.0, 1.0):
        return rate
    low, high = clopper_pearson(round(rate.value * images), images, confidence=confidence)
    return Measured(rate.value, min(rate.low, low), max(rate.high, high))


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
    """Images at each distinct score, highest first, when each counts as often as ``counts`` ``(k, n)`` says."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    bad, good = (np.add.reduceat((counts * kind)[:, order], starts, axis=1) for kind in (defective, ~defective))
    return Masses(bad, good, bad)


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
    """Scores in float64 and labels as booleans, or a named reason why they have no metric."""
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
