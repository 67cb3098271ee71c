"""What variants came to: rows, their summaries over seeds, and the choice between quality and time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from csflow.ablation.request import Quoted, Variant
from csflow.config import ScoringConfig, Section
from csflow.errors import DataError
from csflow.metrics import Measured

Criterion = Literal["synthetic", "test"]

METRIC: dict[Criterion, str] = {"synthetic": "synthetic_auroc", "test": "image_auroc"}
"""What each criterion looks at."""

ABOUT_DATA = ("shots", "joint")
"""Groups that vary what is fitted and not the detector: nothing to choose."""

BUSY = 0.2
"""Cores taken by others from which on a time counts as taken on a busy machine: the system itself stays below."""

ENDED = (
    "Measuring it has not come to an end: it ended the process, probably for lack of memory, or is at it now. "
    "It is tried again after all others."
)
"""The error of a row from when its measurement begins: nobody can write it any more once the process was killed."""


class Timing(Section):
    """How long the served form takes for one decoded image.

    Attributes:
        median_ms: Median over the repetitions, in milliseconds.
        p95_ms: 95 % of them took at most this long.
        repetitions: Images timed after warming up.
        threads: Cores it could use.
        machine: Where it was measured.
        load: How many of the cores it could use were kept busy by other processes meanwhile; None if not known.
    """

    median_ms: float
    p95_ms: float
    repetitions: int
    threads: int
    machine: str
    load: float | None

    @property
    def busy(self) -> bool:
        """Whether others took so much that the time is too long."""
        return self.load is not None and self.load > BUSY


class Row(Section):
    """What one variant with one seed came to.

    Attributes:
        key: Digest of data, configuration, weights and code: equal keys are the same experiment.
        line: Name of the line whose images judged.
        seed: Of the training.
        config: The complete configuration, as plain JSON values.
        git_rev: Revision of the line's data.
        images: How many images were fitted, and how many of each kind judged.
        metrics: As fractions with their intervals; those of the test images have the names of
            :mod:`csflow.metrics`, ``synthetic_auroc`` is that against synthetic defects.
        timing: None if it was not measured.
        parameters: Numbers in what was fitted, the trunk not counted.
        training_seconds: Of the fit, whenever it was done; None if that is not known any more.
        test_scores: Of the ``good`` and of the ``defective`` test images, rounded; empty without both kinds, and in
            rows written before scores were kept.
        error: Why there are no figures; empty if there are.
    """

    key: str
    line: str
    seed: int
    config: dict[str, Any]
    git_rev: str = ""
    images: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, Measured] = Field(default_factory=dict)
    timing: Timing | None = None
    parameters: int | None = None
    training_seconds: float | None = None
    test_scores: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    error: str = ""


class Entry(Section):
    """A variant of an ablation and the key of its row."""

    variant: Variant
    key: str


@dataclass(frozen=True)
class Summary:
    """A variant over all its seeds.

    Attributes:
        variant: As planned, with the first seed.
        rows: One for every seed that has been run.
        seeds: How many there will be.
    """

    variant: Variant
    rows: tuple[Row, ...]
    seeds: int

    @property
    def name(self) -> str:
        """Group and name."""
        return f"{self.variant.group}: {self.variant.name}"

    @property
    def quoted(self) -> Quoted | None:
        """The paper's figure."""
        return self.variant.quoted

    @property
    def sound(self) -> tuple[Row, ...]:
        """Rows that have figures."""
        return tuple(row for row in self.rows if not row.error)

    @property
    def errors(self) -> tuple[str, ...]:
        """What went wrong, each message once."""
        return tuple(dict.fromkeys(row.error for row in self.rows if row.error))

    def metric(self, name: str) -> Measured | None:
        """Mean over the seeds of value and of both ends; None if any seed that ran well has none."""
        found = [row.metrics.get(name) for row in self.sound]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        return Measured(*(statistics.fmean(column) for column in zip(*known, strict=True)))

    def deviation(self, name: str) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        values = [row.metrics[name].value for row in self.sound if name in row.metrics]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def milliseconds(self) -> float | None:
        """Median per image: of the graph, which is the same for all seeds; else the mean over them."""
        return self._mean(lambda row: None if row.timing is None else row.timing.median_ms)

    @property
    def training_seconds(self) -> float | None:
        """Mean over the seeds."""
        return self._mean(lambda row: row.training_seconds)

    @property
    def parameters(self) -> float | None:
        """Mean over the seeds."""
        return self._mean(lambda row: row.parameters)

    def _mean(self, of: Callable[[Row], float | None]) -> float | None:
        values = [value for row in self.sound if (value := of(row)) is not None]
        return statistics.fmean(values) if values else None


def summarise(entries: Sequence[Entry], rows: dict[str, Row]) -> list[Summary]:
    """Put seeds of a variant together, in the order planned; rows that are not there yet are left out."""
    together: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        variant = entry.variant
        together.setdefault((variant.group, variant.name, variant.line.line), []).append(entry)
    return [
        Summary(same[0].variant, tuple(rows[entry.key] for entry in same if entry.key in rows), len(same))
        for same in together.values()
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one beats, cheapest first.

    A point is beaten by one that costs at most as much and is at least as good, and is better in one of both. Of equal
    points all stay.

    Args:
        points: Pairs of cost (less is better) and quality (more is better).
    """
    beaten = [
        any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points) for cost, quality in points
    ]
    return sorted((place for place, lost in enumerate(beaten) if not lost), key=lambda place: points[place])


@dataclass(frozen=True)
class Choice:
    """The variant that fits the takt.

    Attributes:
        chosen: The fastest of those that are as good as the best one within its interval.
        best: The best by value alone among those that fit.
        tied: How many cannot be told from the best one.
        front: Variants on the Pareto front, fastest first, those too slow included.
        too_slow: How many have figures but do not fit.
        timings: Of every variant that could have been chosen.
        left_out: Variants that this criterion cannot judge: other scores and maps.
    """

    chosen: Summary
    best: Summary
    tied: int
    front: tuple[Summary, ...]
    too_slow: int
    timings: tuple[Timing, ...]
    left_out: tuple[Summary, ...]


def is_choosable(summary: Summary, by: Criterion, own: ScoringConfig) -> bool:
    """Whether the criterion can order a variant among the others.

    Pasted defects cannot order scores: on Magnetic Tile Defects they put the map's maximum before the mean, real
    defects put it behind (benchmarks/results/recipe-mtd, table2-mtd.json).
    """
    about_data = summary.variant.group in ABOUT_DATA
    return not about_data and (by == "test" or summary.variant.line.scoring == own)


def choose(summaries: Sequence[Summary], takt_ms: float, by: Criterion, own: ScoringConfig) -> Choice:
    """The best variant that fits the takt; of those that lie within the best one's interval the fastest.

    Args:
        summaries: Variants of one line.
        takt_ms: Most milliseconds an image may take, compared with the median.
        by: What counts as good.
        own: The score and map that the ablation's line has.

    Raises:
        DataError: If nothing was measured by this criterion, or nothing fits; the fastest variant is named then.
    """
    metric = METRIC[by]
    distinct: dict[tuple[str, ...], Summary] = {}  # one experiment may stand in several groups
    for summary in summaries:
        if is_choosable(summary, by, own):
            distinct.setdefault(tuple(row.key for row in summary.rows), summary)
    if not distinct:
        raise DataError(
            "The newest ablation varies only what is fitted, which is nothing to choose, or only score and map, which "
            "--by synthetic cannot order. Ablate another group, for instance width."
        )
    known = [
        (ms, value, summary)
        for summary in distinct.values()
        if (ms := summary.milliseconds) is not None and (value := summary.metric(metric)) is not None
    ]
    if not known:
        raise DataError(_nothing_known(by))
    fitting = [found for found in known if found[0] <= takt_ms]
    if not fitting:
        ms, value, fastest = min(known, key=lambda found: found[0])
        raise DataError(
            f"No variant fits a takt of {takt_ms:g} ms. The fastest is {fastest.name!r} with {ms:.1f} ms "
            f"({metric} {100 * value.value:.2f} %). Allow more time, use a faster machine, or ablate smaller variants."
        )
    best = max(fitting, key=lambda found: (found[1].value, -found[0]))
    tied = [found for found in fitting if found[1].value >= best[1].low]
    chosen = min(tied, key=lambda found: (found[0], -found[1].value))
    front = pareto_front([(ms, value.value) for ms, value, _ in known])
    return Choice(
        chosen=chosen[2],
        best=best[2],
        tied=len(tied),
        front=tuple(known[place][2] for place in front),
        too_slow=len(known) - len(fitting),
        timings=tuple(row.timing for _, _, each in known for row in each.sound if row.timing is not None),
        left_out=tuple(
            each for each in summaries if is_choosable(each, "test", own) and not is_choosable(each, by, own)
        ),
    )


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
