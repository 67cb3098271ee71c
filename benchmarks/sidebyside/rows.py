"""The rows of the result, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LARGER_IS_BETTER = frozenset({"images/s", "GB/s", "GFLOP/s", "of limit"})
SMALLER_IS_BETTER = frozenset({"s", "ms", "MB"})


@dataclass(frozen=True)
class Row:
    """The measurement of one work.

    Attributes:
        work: Name of the work, with what part of it in brackets.
        ours: Our figure.
        peer: The peer's, ``None`` if there is none.
        peer_name: Who the peer is.
        unit: Of both; says which direction is better.
        accuracy: Errors by name, as shares (relative), ``None`` where nothing can be wrong.
    """

    work: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str | None = None
    accuracy: Mapping[str, float] | None = None

    @property
    def ratio(self) -> float | None:
        """Return how many times better ours is; above 1 ours is better, for times and sizes as well."""
        if self.peer is None or not (self.ours > 0 and self.peer > 0):
            return None
        return self.ours / self.peer if self.unit in LARGER_IS_BETTER else self.peer / self.ours

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, with the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def table(rows: Sequence[Row]) -> str:
    """Format all rows as a Markdown table."""
    lines = ["| work | ours | peer | unit | ratio | peer is | accuracy |", "|---|--:|--:|---|--:|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
        accuracy = ", ".join(f"{name} {value:.1e}" for name, value in (row.accuracy or {}).items())
        cells = (row.work, _figure(row.ours), _figure(row.peer), row.unit, ratio, row.peer_name or "", accuracy)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_json(path: Path, *, machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the results as JSON."""
    result = {"machine": machine, "settings": settings, "rows": [row.to_json() for row in rows]}
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
