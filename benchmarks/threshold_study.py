"""Compare random calibration draws under csflow's own rule with the exact result.

Of m fresh good images, exchangeable with n calibration images, the number above the k-th smallest calibration score is
beta-binomial with parameters n - k + 1 and k, for any distribution of the scores, if scores are never equal. If they
can be equal it is stochastically smaller, so only the side that would break the promise is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate, threshold_rank
from csflow.detector.p_values import p_values

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

P_VALUE_GRID = tuple(round(0.02 * step, 2) for step in range(51))
"""Values at which the distribution of the p-values is recorded."""


class Source(Protocol):
    """A source of calibration scores and of fresh scores."""

    @property
    def name(self) -> str:
        """Return the name for tables and plots."""

    @property
    def ties(self) -> bool:
        """Return True if two images can have the same score."""

    def draw(self, generator: np.random.Generator, n: int, fresh: int) -> tuple[Floats, Floats]:
        """Draw the scores of n calibration images and of fresh images."""

    def rate_above(self, threshold: float) -> float | None:
        """Return the false-alarm rate of a threshold over the whole population; None if it is unknown."""


@dataclass(frozen=True)
class Family:
    """A simulated line: independent scores of a known distribution.

    Attributes:
        name: Of the distribution.
        sample: Draws a number of scores.
        survival: Share of scores strictly above a value.
        ties: True if scores can be equal.
    """

    name: str
    sample: Callable[[np.random.Generator, int], npt.NDArray[Any]]
    survival: Callable[[float], float]
    ties: bool = False

    def draw(self, generator: np.random.Generator, n: int, fresh: int) -> tuple[Floats, Floats]:
        """Implement :class:`Source`."""
        scores = np.asarray(self.sample(generator, n + fresh), dtype=np.float64)
        return scores[:n], scores[n:]

    def rate_above(self, threshold: float) -> float:
        """Implement :class:`Source`."""
        return float(self.survival(threshold))


@dataclass(frozen=True)
class Split:
    """Random splits of a pool of real images: no image is both calibrated on and judged in one draw.

    Given the pool the splits are independent and every one is equally likely, so the exact distributions hold for any
    pool of different scores: this tests the rule, and not the likeness of the pool to later parts.
    """

    name: str
    pool: Floats

    @property
    def ties(self) -> bool:
        """Implement :class:`Source`."""
        return len(np.unique(self.pool)) < len(self.pool)

    def draw(self, generator: np.random.Generator, n: int, fresh: int) -> tuple[Floats, Floats]:
        """Implement :class:`Source`."""
        scores = generator.permutation(self.pool)[: n + fresh]
        return scores[:n], scores[n:]

    def rate_above(self, threshold: float) -> None:
        """Implement :class:`Source`."""
        return


@dataclass(frozen=True)
class Population:
    """A line whose parts are exactly those of a pool, drawn with replacement, so that the true rate is known."""

    name: str
    pool: Floats
    ties: bool = True

    def draw(self, generator: np.random.Generator, n: int, fresh: int) -> tuple[Floats, Floats]:
        """Implement :class:`Source`."""
        scores = generator.choice(self.pool, n + fresh)
        return scores[:n], scores[n:]

    def rate_above(self, threshold: float) -> float:
        """Implement :class:`Source`."""
        return float((self.pool > threshold).mean())


class Draws(NamedTuple):
    """The results of many calibration draws under one rule.

    Attributes:
        false_alarms: Fresh images called defective in each draw.
        true_rates: True false-alarm rate of each draw's threshold; None if unknown.
    """

    false_alarms: Counts
    true_rates: Floats | None


class Row(NamedTuple):
    """The result of one source under one rule. Rates are fractions; ``p_…`` are p-values, small if something is wrong.

    Attributes:
        source: Name of the source.
        ties: True if its scores can be equal; then the tests are one-sided.
        alpha: Promised rate.
        confidence: Of the tolerance rule; None for the conformal one.
        n: Calibration images of a draw.
        fresh: Fresh images of a draw.
        draws: Number of draws.
        expected_rate: Exact mean of the rate for scores that are never equal.
        observed_rate: Mean over the draws.
        low: 2.5 % of the draws have a lower rate among their fresh images.
        high: 2.5 % of the draws have a higher one.
        expected_kept: Exact share of draws whose true rate is at most alpha, for scores that are never equal.
        observed_kept: The observed share; None if the true rate is unknown.
        p_total: Of all draws' false alarms together.
        p_shape: Of their distribution over the draws.
        p_kept: Of ``observed_kept``.
    """

    source: str
    ties: bool
    alpha: float
    confidence: float | None
    n: int
    fresh: int
    draws: int
    expected_rate: float
    observed_rate: float
    low: float
    high: float
    expected_kept: float
    observed_kept: float | None
    p_total: float
    p_shape: float
    p_kept: float | None


class Uniformity(NamedTuple):
    """The p-values of good images of one source, from one fresh image a draw, so that they are independent.

    Attributes:
        source: Name of the source.
        n: Calibration images of a draw.
        cumulative: Share of them at most as large as each value of `P_VALUE_GRID`.
        p_uniform: Kolmogorov-Smirnov test of uniformity; with ties only against too many small ones.
    """

    source: str
    n: int
    cumulative: tuple[float, ...]
    p_uniform: float


def families() -> tuple[Family, ...]:
    """Make simulated lines of different shapes: regular, skewed, heavy-tailed, with equal scores, of two lamps."""
    lognormal, heavy, coarse = stats.lognorm(0.6), stats.t(2), stats.poisson(3.0)
    return (
        Family("normal", lambda g, size: g.normal(size=size), lambda x: float(stats.norm.sf(x))),
        Family("lognormal", lambda g, size: g.lognormal(0.0, 0.6, size), lambda x: float(lognormal.sf(x))),
        Family("heavy-tailed", lambda g, size: g.standard_t(2, size), lambda x: float(heavy.sf(x))),
        Family("with ties", lambda g, size: g.poisson(3.0, size), lambda x: float(coarse.sf(x)), ties=True),
        Family("two lamps", _two_lamps, _above_two_lamps),
    )


def _two_lamps(generator: np.random.Generator, size: int) -> Floats:
    other = generator.random(size) < 0.2
    return np.where(other, generator.normal(2.0, 0.3, size), generator.normal(1.0, 0.1, size))


def _above_two_lamps(score: float) -> float:
    return float(0.8 * stats.norm.sf(score, 1.0, 0.1) + 0.2 * stats.norm.sf(score, 2.0, 0.3))


def calibrated(scores: Floats, rule: CalibrationConfig) -> Calibration:
    """Calibrate with csflow's own rule; because the study has no maps, each score is its own map of one pixel."""
    return calibrate(scores, scores[:, None, None], rule)


def repeated(source: Source, rule: CalibrationConfig, *, n: int, fresh: int, draws: int, seed: int) -> Draws:
    """Calibrate and judge fresh good images many times.

    Args:
        source: Source of the scores.
        rule: The promise.
        n: Calibration images of a draw.
        fresh: Fresh images of a draw.
        draws: Number of draws.
        seed: Seed of the generator; equal seeds give equal images to every rule.
    """
    generator = np.random.default_rng(seed)
    false_alarms, rates = [], []
    for _ in range(draws):
        held_out, new = source.draw(generator, n, fresh)
        calibration = calibrated(held_out, rule)
        false_alarms.append(sum(calibration.decide(score) == "defective" for score in new.tolist()))
        rates.append(source.rate_above(float(calibration.threshold or 0.0)))
    known = [rate for rate in rates if rate is not None]
    return Draws(np.array(false_alarms, dtype=np.int64), np.array(known) if known else None)


def judged(source: Source, rule: CalibrationConfig, *, n: int, fresh: int, draws: int, seed: int) -> Row:
    """Compare many draws with the exact result; arguments as in `repeated`."""
    result = repeated(source, rule, n=n, fresh=fresh, draws=draws, seed=seed)
    rank = threshold_rank(n, rule.alpha, rule.confidence)
    observed = result.false_alarms / fresh
    low, high = np.quantile(observed, (0.025, 0.975)).tolist()
    expected_kept = float(stats.beta.cdf(rule.alpha, n - rank + 1, rank))
    kept = None if result.true_rates is None else int((result.true_rates <= rule.alpha).sum())
    return Row(
        source=source.name,
        ties=source.ties,
        alpha=rule.alpha,
        confidence=rule.confidence,
        n=n,
        fresh=fresh,
        draws=draws,
        expected_rate=(n - rank + 1) / (n + 1),
        observed_rate=float(observed.mean()),
        low=low,
        high=high,
        expected_kept=expected_kept,
        observed_kept=None if kept is None else kept / draws,
        p_total=total_test(result.false_alarms, n=n, fresh=fresh, rank=rank, ties=source.ties),
        p_shape=shape_test(result.false_alarms, n=n, fresh=fresh, rank=rank, ties=source.ties, seed=seed),
        p_kept=None if kept is None else kept_test(kept, draws, expected_kept, ties=source.ties),
    )


def total_test(false_alarms: Counts, *, n: int, fresh: int, rank: int, ties: bool) -> float:
    """Test all false alarms together, exactly: their sum over independent draws.

    Args:
        false_alarms: Of each draw.
        n: Calibration images of a draw.
        fresh: Fresh images of a draw.
        rank: Rank of the calibration score that is the threshold, from 1.
        ties: True if scores can be equal; then only too many are evidence.
    """
    single = stats.betabinom.pmf(np.arange(fresh + 1), fresh, n - rank + 1, rank)
    size = len(false_alarms) * fresh + 1
    pmf = np.clip(np.fft.irfft(np.fft.rfft(single, 2 * size) ** len(false_alarms), 2 * size)[:size], 0.0, None)
    total = int(false_alarms.sum())
    many, few = float(pmf[total:].sum()), float(pmf[: total + 1].sum())
    return min(1.0, many if ties else 2.0 * min(many, few))


def shape_test(false_alarms: Counts, *, n: int, fresh: int, rank: int, ties: bool, seed: int) -> float:
    """Test how false alarms vary from draw to draw, exactly, with the steps of the distribution filled at random.

    Arguments as in `total_test`, and the seed of the random filling.
    """
    pmf = stats.betabinom.pmf(np.arange(fresh + 1), fresh, n - rank + 1, rank)
    below = np.concatenate([[0.0], np.cumsum(pmf)])
    filled = below[false_alarms] + np.random.default_rng(seed).random(len(false_alarms)) * pmf[false_alarms]
    # Too many false alarms give too high values, which make the cumulative share less than uniform.
    alternative = "less" if ties else "two-sided"
    return float(stats.kstest(np.clip(filled, 0.0, 1.0), "uniform", alternative=alternative).pvalue)


def kept_test(kept: int, draws: int, expected: float, *, ties: bool) -> float:
    """Test exactly how many draws keep the promise; with ties only too few are evidence."""
    return float(stats.binomtest(kept, draws, expected, alternative="less" if ties else "two-sided").pvalue)


def uniformity(source: Source, *, n: int, draws: int, seed: int) -> Uniformity:
    """Test the p-values of good images, each against calibration images of its own.

    A p-value of n calibration images is one of n + 1 equally likely steps; the step below it is filled at random.

    Args:
        source: Source of the scores.
        n: Calibration images of a draw.
        draws: Number of draws.
        seed: Seed of the generator.
    """
    generator = np.random.default_rng(seed)
    values = np.empty(draws)
    for index in range(draws):
        held_out, new = source.draw(generator, n, 1)
        values[index] = p_values(new, held_out)[0]
    filled = values - generator.random(draws) / (n + 1)
    test = stats.kstest(filled, "uniform", alternative="greater" if source.ties else "two-sided")
    cumulative = (values[:, None] <= np.array(P_VALUE_GRID)).mean(axis=0)
    return Uniformity(source.name, n, tuple(np.round(cumulative, 4).tolist()), float(test.pvalue))


def smallest_p(rows: Sequence[Row], uniformities: Sequence[Uniformity]) -> tuple[float, int]:
    """Return the smallest p-value of all tests and the number of tests."""
    found = [p for row in rows for p in (row.p_total, row.p_shape, row.p_kept) if p is not None]
    found += [test.p_uniform for test in uniformities]
    return min(found), len(found)
