"""Weigh quality against time: find the Pareto front, and the variant that fits the takt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from csflow.ablation.rows import UNFINISHED
from csflow.ablation.summaries import VariantSummary
from csflow.ablation.timing import Timing
from csflow.config import ScoringConfig
from csflow.errors import DataError
from csflow.metrics import Measured

Criterion = Literal["synthetic", "test"]

METRIC: dict[Criterion, str] = {"synthetic": "synthetic_auroc", "test": "image_auroc"}
"""The metric that each criterion compares."""

ABOUT_DATA = ("shots", "joint")
"""Groups that vary the images fitted and not the detector: there is nothing to choose."""


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other point beats.

    A point is beaten by one that costs at most as much and is at least as good, and is better in one of the two. Equal
    points all stay.

    Args:
        points: Pairs of cost (less is better) and quality (more is better).

    Returns:
        Indices of the points, cheapest first.
    """
    beaten = [
        any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points) for cost, quality in points
    ]
    return sorted((index for index, lost in enumerate(beaten) if not lost), key=lambda index: points[index])


@dataclass(frozen=True)
class Choice:
    """The variant that fits the takt.

    Attributes:
        chosen: The fastest of those that are as good as the best one within its interval.
        best: The one with the best value among those that fit.
        tied: Number of variants within the interval of the best one.
        front: Variants on the Pareto front, fastest first, including those that are too slow.
        too_slow: Number of variants that have figures but do not fit.
        timings: The timings of every variant that could have been chosen.
        left_out: Variants that this criterion cannot judge: other scores and maps.
    """

    chosen: VariantSummary
    best: VariantSummary
    tied: int
    front: tuple[VariantSummary, ...]
    too_slow: int
    timings: tuple[Timing, ...]
    left_out: tuple[VariantSummary, ...]


class _Candidate(NamedTuple):
    """A variant that has both figures."""

    milliseconds: float
    auroc: Measured
    summary: VariantSummary


def is_choosable(summary: VariantSummary, by: Criterion, own: ScoringConfig) -> bool:
    """Tell if the criterion can rank a variant.

    Pasted defects cannot rank scores: on Magnetic Tile Defects they rank the map's maximum above the mean, whereas
    real defects rank it below (benchmarks/results/recipe-mtd, table2-mtd.json).

    Args:
        summary: The variant.
        by: The criterion.
        own: Score and map of the line that was ablated.
    """
    about_data = summary.variant.group in ABOUT_DATA
    return not about_data and (by == "test" or summary.variant.line.scoring == own)


def choose_variant(summaries: Sequence[VariantSummary], takt_ms: float, by: Criterion, own: ScoringConfig) -> Choice:
    """Choose the fastest variant within the interval of the best one that fits the takt.

    Args:
        summaries: Variants of one line.
        takt_ms: Most milliseconds an image may take, compared with the median.
        by: The criterion of quality.
        own: Score and map of the line that was ablated.

    Raises:
        DataError: If nothing was measured by this criterion, or nothing fits; the message names the fastest variant.
    """
    known = _candidates(summaries, by, own)
    fitting = [each for each in known if each.milliseconds <= takt_ms]
    if not fitting:
        ms, auroc, fastest = min(known, key=lambda each: each.milliseconds)
        raise DataError(
            f"No variant fits a takt of {takt_ms:g} ms. The fastest is {fastest.name!r} with {ms:.1f} ms "
            f"({METRIC[by]} {100 * auroc.value:.2f} %). Allow more time, use a faster machine, or ablate smaller "
            "variants."
        )
    best = max(fitting, key=lambda each: (each.auroc.value, -each.milliseconds))
    tied = [each for each in fitting if each.auroc.value >= best.auroc.low]
    chosen = min(tied, key=lambda each: (each.milliseconds, -each.auroc.value))
    front = pareto_front([(each.milliseconds, each.auroc.value) for each in known])
    return Choice(
        chosen=chosen.summary,
        best=best.summary,
        tied=len(tied),
        front=tuple(known[index].summary for index in front),
        too_slow=len(known) - len(fitting),
        timings=tuple(row.timing for each in known for row in each.summary.sound if row.timing is not None),
        left_out=tuple(
            each for each in summaries if is_choosable(each, "test", own) and not is_choosable(each, by, own)
        ),
    )


def _candidates(summaries: Sequence[VariantSummary], by: Criterion, own: ScoringConfig) -> list[_Candidate]:
    """Return the variants that can be chosen and have both figures.

    Raises:
        DataError: If there is none.
    """
    distinct: dict[tuple[str, ...], VariantSummary] = {}  # one experiment may belong to several groups
    for summary in summaries:
        if is_choosable(summary, by, own):
            measured = tuple(row.key for row in summary.rows)
            distinct.setdefault(measured or (summary.name,), summary)
    if not distinct:
        raise DataError(
            "The newest ablation varies only the images fitted, which leaves nothing to choose, or only score and map, "
            "which --by synthetic cannot rank. Ablate another group, for instance width."
        )
    known = [
        _Candidate(ms, auroc, summary)
        for summary in distinct.values()
        if (ms := summary.milliseconds) is not None and (auroc := summary.metric(METRIC[by])) is not None
    ]
    if not known:
        raise DataError(_unmeasured(list(distinct.values())) or _nothing_known(by))
    return known


def _unmeasured(summaries: Sequence[VariantSummary]) -> str:
    """Say that no variant has figures yet, and why; empty if one has."""
    if any(summary.sound for summary in summaries):
        timed = any(summary.milliseconds is not None for summary in summaries)
        return "" if timed else f"No variant was timed. {_RESUME}"
    finished = [summary for summary in summaries if any(not row.is_unfinished for row in summary.rows)]
    if not finished:
        return (
            "The newest ablation has not measured a variant yet: it was interrupted before the first one was finished, "
            f"or it is still running. {_RESUME}"
        )
    errors = dict.fromkeys(error for summary in finished for error in summary.errors if error != UNFINISHED)
    return f"Every variant that was measured failed: {'; '.join(errors)} Correct that, and ablate again."


_RESUME = "Give the same csflow ablate command again: it goes on where it stopped."


def _nothing_known(by: Criterion) -> str:
    if by == "test":
        return (
            "No variant was judged on labelled test images. Add good and defective ones and ablate again, or choose "
            "--by synthetic."
        )
    return (
        "No variant was judged on synthetic defects: the line holds no good images out. Raise roles.gate and ablate "
        "again, or choose --by test."
    )
