"""Compute how certain a measured value is: intervals and differences, from resamples or exact."""

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

# Resamples are drawn in portions of about this many counts: 8 MiB an array, for any number of images.
_PORTION = 1_000_000

# Metrics are in [0, 1]: smaller differences of two sums are nothing but rounding, from adding in another order.
_ROUNDING = 1e-12
_PERFECT = Masses(*(np.array([mass]) for mass in ([1, 0], [0, 1], [1, 0])))


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float


class Measured(NamedTuple):
    """A metric and its two-sided interval."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """A metric of a second detector minus that of a first, on the same images.

    Attributes:
        difference: On all images.
        low: Lower end of the two-sided bootstrap interval.
        high: Upper end.
        p_value: Two-sided, for the hypothesis that both are equally good.
    """

    difference: float
    low: float
    high: float
    p_value: float


class Draws(NamedTuple):
    """A metric on all images and on each resample ``(samples,)``; NaN where a resample lost a class."""

    value: float
    resampled: Floats


class Reach(NamedTuple):
    """The range that every interval contains, whatever the images say; ``low`` exceeds ``high`` unless they are few.

    Attributes:
        low: The interval begins here or lower.
        high: The interval ends here or higher.
    """

    low: float
    high: float


def check_request(confidence: float, samples: int = 1) -> None:
    """Refuse a request for which no interval exists.

    Raises:
        DataError: If the confidence is not between 0 and 1, or there is no resample.
    """
    if not 0 < confidence < 1:
        raise DataError(f"A confidence is between 0 and 1, got {confidence}. Ask for 0.95, for instance.")
    if samples < 1:
        raise DataError(f"An interval needs at least one resample, got {samples}. Ask for 2000, for instance.")


def resamples(defective: Labels, samples: int, seed: int, *, width: int = 0) -> Iterator[Counts]:
    """Draw resamples and yield them in portions, which do not change the draw.

    Good and defective images are drawn separately, so every resample has as many of each as there are.

    Args:
        defective: ``(n,)``.
        samples: Number of resamples.
        seed: Of the draw.
        width: Numbers that the caller keeps of each resample if more than ``n``: makes the portions smaller.

    Yields:
        ``(k, n)``: how often each of ``k`` resamples takes each image.
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
    """Compute every metric on all images and on every resample; each portion of resamples is used once."""
    portions = [{name: measure(masses) for name, measure in metrics.items()} for masses in resampled]
    return {
        name: Draws(float(measure(whole)[0]), np.concatenate([portion[name] for portion in portions]))
        for name, measure in metrics.items()
    }


def percentiles(values: Floats, confidence: float) -> Interval:
    """Return the percentile interval of resampled values; resamples that lost a class are left out.

    Raises:
        DataError: If the confidence is not between 0 and 1.
    """
    check_request(confidence)
    low, high = np.quantile(values[~np.isnan(values)], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_difference(first: Draws, second: Draws, confidence: float) -> PairedDifference:
    """Subtract the first from the second, from draws of the same resamples.

    A difference below the rounding of a sum counts as none: detectors that rank alike differ by exactly 0.

    Reference:
        Efron and Tibshirani 1993, chapter 16; one is added to the tail so that no p-value is 0.
    """
    changes = _without_rounding(second.resampled - first.resampled)
    changes = changes[~np.isnan(changes)]
    smaller_tail = min(int((changes <= 0).sum()), int((changes >= 0).sum()))
    p_value = min(1.0, 2 * (1 + smaller_tail) / (1 + changes.size))
    difference = float(_without_rounding(np.array([second.value - first.value]))[0])
    return PairedDifference(difference, *percentiles(changes, confidence), p_value)


def reach(measure: Measure, whole: Masses, images: tuple[int, int], confidence: float) -> Reach:
    """Compute the values that perfectly separated or perfectly confused images cannot exclude.

    Every resample of such images is perfect, as if nothing were uncertain. The AUROC that is still possible is
    Newcombe's score limit, which depends on the number of images; every other metric takes its value at this AUROC
    when both classes are normal with equal spread.

    Args:
        measure: The metric.
        whole: Masses ``(1, K)`` of all images; only their sums matter.
        images: Number of good and of defective images.
        confidence: Two-sided.

    Reference:
        Newcombe, Statistics in Medicine 25 (2006), method 5.
    """
    limit = newcombe_limit(*images, confidence=confidence)
    if measure is ranking.auroc:
        return Reach(limit, 1.0 - limit)
    best, worst = (float(measure(_binormal(auroc, whole))[0]) for auroc in (limit, 1.0 - limit))
    # For a false positive rate less is better.
    return Reach(best, worst) if measure(_PERFECT)[0] == 1.0 else Reach(worst, best)


def measured(found: Draws, measure: Measure, whole: Masses, images: tuple[int, int], confidence: float) -> Measured:
    r"""Return a metric with its percentile interval, widened by the values that this number of images cannot exclude.

    A bootstrap knows only images that occurred. Of a good detector it sees too few hard images, so its interval is too
    narrow; of perfectly separated images it sees none. Imperfectly separated images cannot show more than the same
    number of perfectly separated ones. So the interval contains `reach`: it equals that of perfectly separated images
    if all images are, and swapping a pair of them never makes it narrower. For many images, or away from 0 and 1, the
    percentiles are further out and nothing changes.

    If all scores are equal, they say nothing, without doubt: the interval is the value alone.

    Args:
        found: The metric on all images and on the resamples.
        measure: The metric.
        whole: Masses ``(1, K)`` of all images or pixels.
        images: Number of good and of defective images.
        confidence: Two-sided.

    Raises:
        DataError: If the confidence is not between 0 and 1.
    """
    low, high = percentiles(found.resampled, confidence)
    if whole.good.shape[1] > 1:
        least = reach(measure, whole, images, confidence)
        low, high = min(low, least.low), max(high, least.high)
    return Measured(found.value, low, high)


def delong(whole: Masses, confidence: float) -> Interval:
    r"""Compute the interval of an AUROC by the variance of DeLong on the scale of log odds.

    With :math:`V_{10}(i)` the share of good images below defective image i, :math:`V_{01}(j)` the share of defective
    images above good image j (ties half), and A the AUROC:

    .. math:: \sigma^2 = \frac{\operatorname{var} V_{10}}{P} + \frac{\operatorname{var} V_{01}}{N}, \quad
        \operatorname{logit} A \pm z \frac{\sigma}{A (1 - A)}

    A class of one image has no variance that could be estimated: it adds nothing, and the caller widens the interval.
    An AUROC of 0 or 1 gives a point.

    Args:
        whole: Masses ``(1, K)`` of all images.
        confidence: Two-sided.

    Reference:
        DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); Pepe, The Statistical Evaluation of Medical Tests
        (2003), section 5.2.3, for the scale.
    """
    from scipy import special, stats

    value = float(ranking.auroc(whole)[0])
    if value in (0.0, 1.0):
        return Interval(value, value)
    defective, good = (np.asarray(mass[0], dtype=np.float64) for mass in (whole.defective, whole.good))
    below = (good.sum() - np.cumsum(good) + good / 2) / good.sum()
    above = (np.cumsum(defective) - defective / 2) / defective.sum()
    variance = sum(
        float((mass * (share - value) ** 2).sum() / max(1.0, mass.sum() - 1) / mass.sum())
        for mass, share in ((defective, below), (good, above))
    )
    half = float(stats.norm.isf((1 - confidence) / 2)) * np.sqrt(variance) / (value * (1 - value))
    return Interval(*(float(special.expit(special.logit(value) + side * half)) for side in (-1, 1)))


def clopper_pearson(events: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Compute the exact two-sided interval of a binomial rate.

    Raises:
        DataError: If there are no trials, more events than trials, or the confidence is not between 0 and 1.

    Reference:
        Clopper and Pearson 1934, as beta quantiles.
    """
    from scipy import stats

    check_request(confidence)
    if not 0 <= events <= trials or trials == 0:
        raise DataError(f"A rate needs 0 <= events <= trials and at least one trial, got {events} of {trials}.")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, events, trials - events + 1) if events else 0.0
    high = stats.beta.isf(tail, events + 1, trials - events) if events < trials else 1.0
    return Interval(float(low), float(high))


def newcombe_limit(good: int, defective: int, *, confidence: float = 0.95) -> float:
    """Compute the lowest AUROC that a number of perfectly separated images leaves possible.

    Args:
        good: Number of good images.
        defective: Number of defective ones.
        confidence: Two-sided.

    Raises:
        DataError: If a class has no image, or the confidence is not between 0 and 1.

    Reference:
        Newcombe, Statistics in Medicine 25 (2006), method 5: lower limit of an AUROC measured as 1.
    """
    from scipy import optimize, stats

    check_request(confidence)
    if min(good, defective) < 1:
        raise DataError(f"An AUROC needs images of both kinds, got {good} good and {defective} defective. Add some.")
    z = float(stats.norm.isf((1 - confidence) / 2))
    star = (good + defective) / 2 - 1

    def gap(auroc: float) -> float:
        spread = 1 + star * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
        return (1 - auroc) - z**2 * auroc * spread / (good * defective)

    return float(optimize.brentq(gap, 0.0, 1.0))


def _without_rounding(values: Floats) -> Floats:
    return np.where(np.abs(values) < _ROUNDING, 0.0, values)


def _binormal(auroc: float, whole: Masses) -> Masses:
    """Return masses on a fine grid of scores: both classes normal with equal spread, and of this AUROC."""
    from scipy import stats

    shift = np.sqrt(2) * stats.norm.ppf(auroc)
    edges = np.linspace(min(shift, 0.0) - 10.0, max(shift, 0.0) + 10.0, 4001)
    shares = [-np.diff(stats.norm.sf(edges - mean))[None, ::-1] for mean in (shift, 0.0, shift)]
    return Masses(*(mass.sum() * share for mass, share in zip(whole, shares, strict=True)))
