"""How good a detector is, with the uncertainty of the images it was measured on.

Labels are booleans, True = defective. Scores may be tied or infinite but never NaN. One class alone has
no AUROC: that is a `DataError`, not a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError
from csflow.scoring import upsample

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]

# Resamples are drawn in portions of about this many counts: 64 MiB, whatever the number of images.
_PORTION = 8_000_000


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """AUROC of a second detector minus that of a first, on the same images.

    Attributes:
        difference: On all images.
        low: Lower end of the two-sided bootstrap interval.
        high: Upper end.
        p_value: Two-sided, of the hypothesis that both are equally good.
    """

    difference: float
    low: float
    high: float
    p_value: float


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
    values, defective = _checked(scores, labels)
    good, bad = np.sort(values[~defective]), values[defective]
    doubled_wins = np.searchsorted(good, bad, side="left") + np.searchsorted(good, bad, side="right")
    return float(doubled_wins.sum() / (2 * good.size * bad.size))


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> RocCurve:
    """Receiver operating characteristic, one point for each distinct score.

    Raises:
        DataError: If a score is NaN, a class is missing or the lengths differ.
    """
    values, defective = _checked(scores, labels)
    order = np.argsort(-values, kind="stable")
    ordered, hits = values[order], defective[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    true, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    return RocCurve(
        np.concatenate([[0.0], false / false[-1]]),
        np.concatenate([[0.0], true / true[-1]]),
        np.concatenate([[np.inf], ordered[last]]),
    )


def bootstrap_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of the image AUROC; good and defective images are resampled separately.

    Perfectly separated scores stay so in every resample, as if nothing were uncertain. There the far end is
    Newcombe's score limit instead, which depends on the number of images.

    Raises:
        DataError: As `image_auroc`.

    Reference:
        Efron and Tibshirani 1993; Newcombe, Statistics in Medicine 25 (2006), method 5.
    """
    values, defective = _checked(scores, labels)
    measured = image_auroc(values, defective)
    if measured in (0.0, 1.0):
        far = _newcombe_limit(int((~defective).sum()), int(defective.sum()), confidence)
        return Interval(far, 1.0) if measured == 1.0 else Interval(0.0, 1.0 - far)
    draws = np.concatenate([_aurocs(values, defective, counts) for counts in _resamples(defective, samples, seed)])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
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
        confidence: Of the two-sided percentile interval.
        samples: Number of resamples, stratified by label.
        seed: Of the resamples.

    Raises:
        DataError: As `image_auroc`, for either.
    """
    before, defective = _checked(first, labels)
    after, _ = _checked(second, labels)
    draws = np.concatenate(
        [
            _aurocs(after, defective, counts) - _aurocs(before, defective, counts)
            for counts in _resamples(defective, samples, seed)
        ]
    )
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    smaller_tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p_value = min(1.0, 2 * (1 + smaller_tail) / (1 + samples))
    difference = image_auroc(after, defective) - image_auroc(before, defective)
    return PairedDifference(difference, float(low), float(high), p_value)


def clopper_pearson(events: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Exact two-sided interval of a binomial rate.

    Raises:
        DataError: If there are no trials or more events than trials.

    Reference:
        Clopper and Pearson 1934, as beta quantiles.
    """
    from scipy import stats

    if not 0 <= events <= trials or trials == 0:
        raise DataError(f"A rate needs 0 <= events <= trials and at least one trial, got {events} of {trials}.")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, events, trials - events + 1) if events else 0.0
    high = stats.beta.isf(tail, events + 1, trials - events) if events < trials else 1.0
    return Interval(float(low), float(high))


def pixel_auroc(maps: Sequence[npt.NDArray[np.floating]], masks: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Exact AUROC over all pixels of all images; nothing is subsampled or binned.

    Each map is upsampled to its mask. Memory: four bytes for each *defective* pixel, and one image.

    Args:
        maps: Anomaly maps ``(h, w)``, one an image.
        masks: Ground truth ``(H, W)``, True = defective; all False for a good image. Read twice, so
            a sequence that loads its items when asked keeps memory small.

    Raises:
        DataError: If lengths differ, a map holds NaN, or all pixels are of one class.
    """
    if len(maps) != len(masks):
        raise DataError(f"Pixel AUROC needs one mask for each map, got {len(maps)} maps and {len(masks)} masks.")
    defective = [pixels[mask] for pixels, mask in _pixels(maps, masks)]
    ordered = np.sort(np.concatenate(defective)) if defective else np.zeros(0, dtype=np.float32)
    good, doubled_wins = 0, 0
    for pixels, mask in _pixels(maps, masks):
        # Sorted, the look-ups walk through memory in order: several times faster.
        rest = np.sort(pixels[~mask])
        not_above = np.searchsorted(ordered, rest, side="right") + np.searchsorted(ordered, rest, side="left")
        good += rest.size
        doubled_wins += 2 * rest.size * ordered.size - int(not_above.sum(dtype=np.int64))
    if ordered.size == 0 or good == 0:
        raise DataError(
            f"Pixel AUROC needs defective and good pixels, got {ordered.size} and {good}. "
            "Add masks of defective images."
        )
    return doubled_wins / (2 * ordered.size * good)


def _pixels(
    maps: Sequence[npt.NDArray[np.floating]], masks: Sequence[npt.NDArray[np.bool_]]
) -> Iterator[tuple[npt.NDArray[np.float32], Labels]]:
    for map2d, mask in zip(maps, masks, strict=True):
        truth = np.asarray(mask, dtype=bool)
        height, width = truth.shape
        yield upsample(map2d, (width, height)), truth


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
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
            f"AUROC needs good and defective images, got {defective.size - positives} good and {positives} defective. "
            "Add test images of the missing kind."
        )
    return values, defective


def _resamples(defective: Labels, samples: int, seed: int) -> Iterator[Counts]:
    """How often each resample takes each image, as portions ``(k, n)``; the portions do not change the draw."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(~defective), np.flatnonzero(defective)]
    portion = max(1, _PORTION // defective.size)
    for start in range(0, samples, portion):
        rows = min(portion, samples - start)
        counts = np.zeros((rows, defective.size), dtype=np.int64)
        for row in range(rows):
            for group in groups:
                drawn = rng.integers(0, group.size, size=group.size)
                counts[row, group] = np.bincount(drawn, minlength=group.size)
        yield counts


def _aurocs(values: Floats, defective: Labels, counts: Counts) -> Floats:
    """AUROC ``(k,)`` of each resample."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    bad, good = (np.add.reduceat((counts * kind)[:, order], starts, axis=1) for kind in (defective, ~defective))
    doubled_wins = (bad * (2 * good.cumsum(axis=1) - good)).sum(axis=1)
    positives = int(defective.sum())
    return np.asarray(doubled_wins / (2 * positives * (defective.size - positives)), dtype=np.float64)


def _newcombe_limit(good: int, defective: int, confidence: float) -> float:
    """Lower limit of an AUROC measured as 1."""
    from scipy import optimize, stats

    z = float(stats.norm.isf((1 - confidence) / 2))
    star = (good + defective) / 2 - 1

    def gap(auroc: float) -> float:
        spread = 1 + star * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
        return (1 - auroc) - z**2 * auroc * spread / (good * defective)

    return float(optimize.brentq(gap, 0.0, 1.0))
