"""Compute pixel metrics: exact ones, and binned ones with intervals, subsets and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from csflow.errors import DataError
from csflow.metrics import ranking
from csflow.metrics.intervals import (
    Counts,
    Draws,
    Measured,
    PairedDifference,
    check_request,
    draw,
    measured,
    paired_difference,
    percentiles,
    resamples,
)
from csflow.metrics.pixel_counts import Maps, Masks, PixelCounts, missing_class, pixels_of, region_weights
from csflow.metrics.ranking import Masses, Measure

PixelMetric = Literal["pixel_auroc", "pixel_ap", "aupro"]

AUPRO_LIMIT = 0.3
"""False positive rate up to which AUPRO integrates, as in MVTec AD."""

PIXEL_METRICS: Mapping[PixelMetric, Measure] = {
    "pixel_auroc": ranking.auroc,
    "pixel_ap": ranking.precision_sum,
    "aupro": partial(ranking.overlap_area, limit=AUPRO_LIMIT),
}


def pixel_auroc(maps: Maps, masks: Masks) -> float:
    """Compute the exact AUROC over all pixels of all images; nothing is subsampled or binned.

    Each map is upsampled to its mask. Memory: about 13 bytes for each *defective* pixel of all images (measured), and
    40 for each pixel of one image.

    Args:
        maps: Anomaly maps ``(h, w)``, one an image.
        masks: Ground truth ``(H, W)``, True = defective; all False for a good image. Both are read twice, so a
            sequence that loads its items on demand keeps memory small.

    Raises:
        DataError: If lengths differ, a map is not finite, or all pixels are of one class.
    """
    defective = [pixels[mask] for pixels, mask in pixels_of(maps, masks)]
    ordered = np.sort(np.concatenate(defective)) if defective else np.zeros(0, dtype=np.float32)
    good, doubled_wins = 0, 0
    for pixels, mask in pixels_of(maps, masks):
        # Sorted, the look-ups walk through memory in order: several times faster.
        rest = np.sort(pixels[~mask])
        not_above = np.searchsorted(ordered, rest, side="right") + np.searchsorted(ordered, rest, side="left")
        good += rest.size
        doubled_wins += 2 * rest.size * ordered.size - int(not_above.sum(dtype=np.int64))
    if ordered.size == 0 or good == 0:
        raise missing_class(ordered.size, good)
    return doubled_wins / (2 * ordered.size * good)


def pixel_ap(maps: Maps, masks: Masks) -> float:
    """Compute the exact average precision over all pixels of all images, one step for each distinct value.

    Memory: about 115 bytes for each *defective* pixel of all images (measured), and 40 for each pixel of one image;
    `csflow.metrics.count_pixels` needs memory for its bins only.

    Raises:
        DataError: As `pixel_auroc`.
    """
    return float(ranking.precision_sum(_exact(maps, masks))[0])


def aupro(maps: Maps, masks: Masks, *, limit: float = AUPRO_LIMIT) -> float:
    """Compute the exact area below the mean overlap of regions up to a false positive rate, divided by that rate.

    A region is a connected part of one mask, pixels that touch by a corner included; every region counts the same,
    whatever its size. The rate is taken over all good pixels of all images, including those next to a defect. The curve
    has a point at each distinct value, starts at (0, 0) and is straight between points. The result is in [0, 1].

    Memory: about 175 bytes for each *defective* pixel of all images (measured), and 40 for each pixel of one image.

    Args:
        maps: Anomaly maps ``(h, w)``, one an image.
        masks: Ground truth ``(H, W)``; all False for a good image.
        limit: Largest false positive rate.

    Raises:
        DataError: As `pixel_auroc`, or if the limit is not in (0, 1].

    Reference:
        Bergmann et al., IJCV 2021, section 4.2, and MVTec's evaluation code.
    """
    if not 0 < limit <= 1:
        raise DataError(f"A false positive rate is above 0 and at most 1, got {limit}. Ask for 0.3, for instance.")
    return float(ranking.overlap_area(_exact(maps, masks), limit)[0])


def pixel_metrics(
    counts: PixelCounts, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> dict[PixelMetric, Measured]:
    """Measure every pixel metric with its interval, all from the same resamples of whole images.

    The values are those of the binned maps: `binning_error` says how far from the exact ones they can be at most. An
    image with an empty mask counts as good. Intervals of AUROC and AUPRO contain at least those of perfectly separated
    images, each image being one observation however many pixels it has; see `csflow.metrics.intervals.measured`. The
    interval of AP does so for perfectly separated maps only and is the percentile interval otherwise: because
    defective pixels are rare, the wider one would say nothing for any detector.

    How often a 95 % interval held the true value in simulations (150 each, normal pixels with an effect of the image;
    in brackets the percentiles alone, with the true value):

    ==========================  ====================  ====================  ====================
    good / defective images     AUROC                 AP                    AUPRO
    ==========================  ====================  ====================  ====================
    191 / 20                    1.00 (0.72; 0.997)    0.89 (0.89; 0.91)     1.00 (0.74; 0.991)
    60 / 20                     0.99 (0.88; 0.971)    0.92 (0.92; 0.68)     0.99 (0.89; 0.914)
    60 / 5                      0.95 (0.71; 0.970)    0.87 (0.87; 0.53)     0.96 (0.73; 0.911)
    20 / 20                     1.00 (0.72; 0.991)    0.88 (0.88; 0.92)     1.00 (0.77; 0.973)
    ==========================  ====================  ====================  ====================

    So intervals of **AP** are somewhat too narrow, and those of the other two wider than they need be for few images.

    Args:
        counts: From `csflow.metrics.count_pixels`.
        confidence: Of the two-sided percentile intervals.
        samples: Number of resamples; good and defective images are drawn separately.
        seed: Of the resamples.

    Raises:
        DataError: If there is no good or no defective pixel, a confidence is not between 0 and 1, or there is no
            resample.
    """
    check_request(confidence, samples)
    whole, draws = _whole(counts), _draws(PIXEL_METRICS, counts, samples, seed)
    images = int(counts.good.any(axis=1).sum()), counts.rows.size
    widened = [name for name in PIXEL_METRICS if name != "pixel_ap" or ranking.is_separated(whole)]
    return {
        name: measured(draws[name], measure, whole, images, confidence)
        if name in widened
        else Measured(draws[name].value, *percentiles(draws[name].resampled, confidence))
        for name, measure in PIXEL_METRICS.items()
    }


def pixel_by_defect(
    counts: PixelCounts, defects: Sequence[str], *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> dict[str, dict[PixelMetric, Measured]]:
    """Measure `pixel_metrics` of each type of defect alone: its images against all good ones.

    Args:
        counts: From `csflow.metrics.count_pixels`.
        defects: ``(n,)``, the type of each image with a defect; the entries of good images do not matter.
        confidence: Of the intervals.
        samples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The metrics by type, in alphabetical order; types without a mask have none.

    Raises:
        DataError: If there is not one type for each image, a confidence is not between 0 and 1, or there is no
            resample.
    """
    types, defective = np.asarray(defects, dtype=np.str_), counts.is_defective
    if types.shape != defective.shape:
        raise DataError(f"Expected one type of defect for each image, got {types.size} for {len(counts)} images.")
    return {
        str(kind): pixel_metrics(
            counts.only(~defective | (types == kind)), confidence=confidence, samples=samples, seed=seed
        )
        for kind in np.unique(types[defective])
    }


def paired_pixel_bootstrap(
    first: PixelCounts,
    second: PixelCounts,
    *,
    metric: PixelMetric = "pixel_auroc",
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Measure how much better the maps of a second detector are than those of a first, on the same images and masks.

    The values are binned, each in bins of its own detector: the difference can be off by at most the sum of both
    `binning_error` bounds. A smaller difference says nothing about the exact values.

    Args:
        first: Counts of the first detector.
        second: Counts of the second one, in bins of its own.
        metric: The metric that is compared.
        confidence: Of the two-sided percentile interval.
        samples: Number of resamples; each takes the same images for both.
        seed: Of the resamples.

    Raises:
        DataError: If the two were not counted on the same masks, a confidence is not between 0 and 1, or there is no
            resample.
    """
    check_request(confidence, samples)
    for before, after in ((first.good, second.good), (first.defective, second.defective)):
        if not np.array_equal(before.sum(axis=1), after.sum(axis=1)) or not np.array_equal(first.rows, second.rows):
            raise DataError("The two detectors were counted on different masks. Count both on the same images.")
    chosen = {metric: PIXEL_METRICS[metric]}
    of_first, of_second = (_draws(chosen, counts, samples, seed)[metric] for counts in (first, second))
    return paired_difference(of_first, of_second, confidence)


def binning_error(counts: PixelCounts) -> dict[PixelMetric, float]:
    r"""Bound how far each binned value can be from the exact one, whatever the order of pixels inside the bins.

    With shares :math:`p_b` of the defective, :math:`q_b` of the good and :math:`o_b` of the region mass in bin b, and
    :math:`T_b, F_b` the defective and good pixels in the bins up to b (highest first):

    - AUROC: the order of a pair in different bins is known; a pair in the same bin counts half and may count 0 or 1.
      The error is at most :math:`\frac12 \sum_b p_b q_b`.
    - AP: the precision is highest if a bin's defective pixels are tied before all its good ones, and lowest if they
      follow after them one by one: :math:`\sum_b p_b \frac{T_b}{T_b + F_{b-1}}` from above, and from below
      :math:`\sum_b p_b - \frac{F_b}{P} \ln \frac{T_b + F_b}{T_{b-1} + F_b}`, where an integral bounds the sum over
      pixels.
    - AUPRO: the curve is exact at the edges of the bins and rises in between, so the area is between the lower and the
      upper step sum, up to the limit.

    Returns:
        The bound of each value on all images. Resamples have bounds of the same kind with their own masses.
    """
    whole = _whole(counts)
    defective, good, regions = (mass[0] / mass.sum() for mass in whole)
    inside = np.clip(AUPRO_LIMIT - (np.cumsum(good) - good), 0.0, good)
    # Half of a bin's box, as a trapezium has; more where the limit cuts the bin.
    part = 1.0 - np.divide(inside, good, out=np.zeros_like(good), where=good > 0) / 2
    low, value, high = _ap_bounds(whole)
    return {
        "pixel_auroc": float((defective * good).sum() / 2),
        "pixel_ap": max(high - value, value - low),
        "aupro": float((inside * regions * part).sum() / AUPRO_LIMIT),
    }


def _ap_bounds(whole: Masses) -> tuple[float, float, float]:
    """Return the lowest, the binned and the highest average precision."""
    defective = whole.defective[0]
    kept = defective > 0
    found, alarms = np.cumsum(defective), np.cumsum(whole.good[0])
    after, before, mass = found[kept], (found - defective)[kept], defective[kept]
    worst, best = alarms[kept], (alarms - whole.good[0])[kept]
    loss = np.zeros_like(mass)
    np.multiply(worst, np.log1p(mass / np.maximum(before + worst, 1)), out=loss, where=worst > 0)
    total = found[-1]
    low, high = float((mass - loss).sum() / total), float((mass * after / (after + best)).sum() / total)
    return low, float(ranking.precision_sum(whole)[0]), high


def _whole(counts: PixelCounts) -> Masses:
    whole = counts.masses()
    if not (whole.defective.any() and whole.good.any()):
        raise missing_class(int(whole.defective.sum()), int(whole.good.sum()))
    return whole


def _draws(
    metrics: Mapping[PixelMetric, Measure], counts: PixelCounts, samples: int, seed: int
) -> dict[PixelMetric, Draws]:
    return draw(metrics, _whole(counts), _resampled(counts, samples, seed))


def _resampled(counts: PixelCounts, samples: int, seed: int) -> Iterator[Masses]:
    for times in resamples(counts.is_defective, samples, seed, width=counts.edges.size + 1):
        yield counts.masses(times)


def _exact(maps: Maps, masks: Masks) -> Masses:
    """Return the masses at each distinct value of a defective pixel, and of good pixels between two such values.

    The order of good pixels between two such values changes no metric.
    """
    marked = [(pixels[mask], region_weights(mask)) for pixels, mask in pixels_of(maps, masks) if mask.any()]
    if not marked:
        raise missing_class(0, sum(mask.size for _, mask in pixels_of(maps, masks)))
    levels, index = np.unique(np.concatenate([values for values, _ in marked]), return_inverse=True)
    good: Counts = np.zeros(2 * levels.size + 1, dtype=np.int64)
    for pixels, mask in pixels_of(maps, masks):
        rest = np.sort(pixels[~mask])
        between = np.searchsorted(levels, rest, side="left") + np.searchsorted(levels, rest, side="right")
        good += np.bincount(between, minlength=good.size)
    if not good.any():
        raise missing_class(index.size, 0)
    defective, regions = np.zeros(good.size), np.zeros(good.size)
    defective[1::2] = np.bincount(index)
    regions[1::2] = np.bincount(index, weights=np.concatenate([weights for _, weights in marked]))
    return Masses(*(mass[None, ::-1] for mass in (defective, good, regions)))
