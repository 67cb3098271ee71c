"""Summarise the variants of an ablation over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csflow.metrics import Measured

if TYPE_CHECKING:
    from csflow.ablation.plan import PlannedVariant
    from csflow.ablation.request import Quoted, Variant
    from csflow.ablation.rows import AblationRow


@dataclass(frozen=True)
class VariantSummary:
    """The figures of a variant over all its seeds.

    Attributes:
        variant: The planned variant, with the first seed.
        rows: One row for every seed that has been run.
        seeds: Number of seeds planned.
    """

    variant: Variant
    rows: tuple[AblationRow, ...]
    seeds: int

    @property
    def name(self) -> str:
        """Return group and name."""
        return f"{self.variant.group}: {self.variant.name}"

    @property
    def quoted(self) -> Quoted | None:
        """Return the paper's figure."""
        return self.variant.quoted

    @property
    def sound(self) -> tuple[AblationRow, ...]:
        """Return the rows that have figures."""
        return tuple(row for row in self.rows if not row.error)

    @property
    def missing(self) -> int:
        """Count the seeds that were not measured, or whose measurement has not ended."""
        return self.seeds - sum(1 for row in self.rows if not row.is_unfinished)

    @property
    def errors(self) -> tuple[str, ...]:
        """Return the error messages, each once."""
        return tuple(dict.fromkeys(row.error for row in self.rows if row.error))

    def metric(self, name: str) -> Measured | None:
        """Average a metric over the seeds: its value and both ends of its interval.

        Returns:
            The means; None if a seed that ran without error lacks the metric.
        """
        found = [row.metrics.get(name) for row in self.sound]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        return Measured(*(statistics.fmean(column) for column in zip(*known, strict=True)))

    def deviation(self, name: str) -> float | None:
        """Return the standard deviation of a metric over the seeds; None for a single one."""
        values = [row.metrics[name].value for row in self.sound if name in row.metrics]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def milliseconds(self) -> float | None:
        """Return the mean over the seeds of the median milliseconds per image."""
        return self._mean(lambda row: None if row.timing is None else row.timing.median_ms)

    @property
    def training_seconds(self) -> float | None:
        """Return the mean over the seeds of the seconds of the fit."""
        return self._mean(lambda row: row.training_seconds)

    @property
    def parameters(self) -> float | None:
        """Return the mean over the seeds of the number of parameters."""
        return self._mean(lambda row: row.parameters)

    def _mean(self, of: Callable[[AblationRow], float | None]) -> float | None:
        values = [value for row in self.sound if (value := of(row)) is not None]
        return statistics.fmean(values) if values else None


def summarise_variants(entries: Sequence[PlannedVariant], rows: Mapping[str, AblationRow]) -> list[VariantSummary]:
    """Gather the seeds of every variant.

    Args:
        entries: Every variant with every seed.
        rows: The rows measured so far, by key.

    Returns:
        One summary per variant, in the order planned.
    """
    same_variant: dict[tuple[str, str, str], list[PlannedVariant]] = {}
    for entry in entries:
        variant = entry.variant
        same_variant.setdefault((variant.group, variant.name, variant.line.line), []).append(entry)
    return [
        VariantSummary(same[0].variant, tuple(rows[entry.key] for entry in same if entry.key in rows), len(same))
        for same in same_variant.values()
    ]


def by_group(summaries: Sequence[VariantSummary]) -> dict[str, list[VariantSummary]]:
    """Sort variants into their groups, in the order planned."""
    found: dict[str, list[VariantSummary]] = {}
    for summary in summaries:
        found.setdefault(summary.variant.group, []).append(summary)
    return found
