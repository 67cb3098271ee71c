"""What a measured value is worth: intervals and differences, from resamples or exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError
from csflow.metrics import ranking
from csflow.metrics.ranking import Floats, Masses, Measure

Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]
Name = TypeVar("Name", bound=str)

# Resamples are drawn in portions of about this many counts: 8 MiB an array, whatever the number of images.
_PORTION = 1_000_000


class Interval(NamedTuple):
    """Both ends belong to it."""

    low: float
    high: float


class Measured(NamedTuple):
    """A metric and the two-sided interval it was measured with."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """A metric of a second detector minus that of a first, on the same images.

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


class Draws(NamedTuple):
    """A metric on all images and on each resample ``(samples,)``; NaN where a resample lost a class."""

    value: float
    resampled: Floats


def resamples(defective: Labels, samples: int, seed: int, *, width: int = 0) -> Iterator[Counts]:
    """How often each resample takes each image, as portions ``(k, n)``; the portions do not change the draw.

    Good and defective images are drawn separately, so every resample has as many of each as there are.

    Args:
        defective: ``(n,)``.
        samples: Number of resamples.
        seed: Of the draw.
        width: Numbers kept of each resample later on if more than ``n``: makes the portions smaller.
    """
    rng = np.random.default_rng(seed)
    groups = [group for group in (np.flatnonzero(~defective), np.flatnonzero(defective)) if group.size]
    portion = max(1, _PORTION // max(defective.size, width))
    for start in range(0, samples, portion):
        rows = min(portion, samples - start)
        counts = np.zeros((rows, defective.size), dtype=np.int64)
        for row in range(rows):
            for group in groups:
                drawn = rng.integers(0, group.size, size=group.size)
                counts[row, group] = np.bincount(drawn, minlength=group.size)
        yield counts


def draw(metrics: Mapping[Name, Measure], whole: Masses, resampled: Iterable[Masses]) -> dict[Name, Draws]:
    """Every metric on all images and on every resample, each portion of resamples passed once."""
    portions = [{name: measure(masses) for name, measure in metrics.items()} for masses in resampled]
    return {
        name: Draws(float(measure(whole)[0]), np.concatenate([portion[name] for portion in portions]))
        for name, measure in metrics.items()
    }


def percentiles(values: Floats, confidence: float) -> Interval:
    """Percentile interval of resampled values; resamples that lost a class are left out."""
    low, high = np.quantile(values[~np.isnan(values)], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_difference(first: Draws, second: Draws, confidence: float) -> PairedDifference:
    """Second minus first, from draws of the same resamples.

    Reference:
        Efron and Tibshirani 1993, chapter 16; one is added to the tail so that no p-value is 0.
    """
    changes = second.resampled - first.resampled
    changes = changes[~np.isnan(changes)]
    smaller_tail = min(int((changes <= 0).sum()), int((changes >= 0).sum()))
    p_value = min(1.0, 2 * (1 + smaller_tail) / (1 + changes.size))
    return PairedDifference(second.value - first.value, *percentiles(changes, confidence), p_value)


def separated(measure: Measure, whole: Masses, images: tuple[int, int], confidence: float) -> Measured:
    """A metric of perfectly separated (or perfectly confused) images, with how far from perfect the detector may be.

    Every resample of such images is perfect, as if nothing were uncertain. The AUROC that is still possible is
    Newcombe's score limit, which depends on the number of images; any other metric takes the value it has at this
    AUROC when both classes are normal with equal spread.

    Args:
        measure: The metric.
        whole: Masses ``(1, K)`` of all images; see `csflow.metrics.ranking.is_separated`.
        images: Number of good and of defective images.
        confidence: Two-sided.

    Reference:
        Newcombe, Statistics in Medicine 25 (2006), method 5.
    """
    limit = _newcombe_limit(*images, confidence)
    possible = limit if ranking.auroc(whole)[0] > 0.5 else 1.0 - limit
    far = possible if measure is ranking.auroc else float(measure(_binormal(possible, whole))[0])
    value = float(measure(whole)[0])
    return Measured(value, min(value, far), max(value, far))


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


def _newcombe_limit(good: int, defective: int, confidence: float) -> float:
    """Lower limit of an AUROC measured as 1."""
    from scipy import optimize, stats

    z = float(stats.norm.isf((1 - confidence) / 2))
    star = (good + defective) / 2 - 1

    def gap(auroc: float) -> float:
        spread = 1 + star * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
        return (1 - auroc) - z**2 * auroc * spread / (good * defective)

    return float(optimize.brentq(gap, 0.0, 1.0))


def _binormal(auroc: float, whole: Masses) -> Masses:
    """Masses on a fine grid of scores when both classes are normal with equal spread and have this AUROC."""
    from scipy import stats

    shift = np.sqrt(2) * stats.norm.ppf(auroc)
    edges = np.linspace(min(shift, 0.0) - 10.0, max(shift, 0.0) + 10.0, 4001)
    shares = [-np.diff(stats.norm.sf(edges - place))[None, ::-1] for place in (shift, 0.0, shift)]
    return Masses(*(mass.sum() * share for mass, share in zip(whole, shares, strict=True)))
