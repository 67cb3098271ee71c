"""The rows of the result, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS = "ours"
"""Name of our implementation among those of the peers."""

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
        note: What else the reader must know.
    """

    work: str
    ours: float
    unit: str
    peer: float | None = None
    peer_name: str | None = None
    accuracy: Mapping[str, float] | None = None
    note: str | None = None

    @property
    def ratio(self) -> float | None:
        """Return how many times better ours is; above 1 ours is better, for times and sizes as well."""
        if self.peer is None or not (self.ours > 0 and self.peer > 0):
            return None
        return self.ours / self.peer if self.unit in LARGER_IS_BETTER else self.peer / self.ours

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values, with the ratio; without a note there is no key for it."""
        values = {**asdict(self), "ratio": self.ratio}
        return values if self.note else {key: value for key, value in values.items() if key != "note"}


def rows_of(
    work: str,
    unit: str,
    values: Mapping[str, float],
    accuracy: Mapping[str, Mapping[str, float]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Make one row for every peer in ``values``, or one without a peer.

    Args:
        work: Name of the rows.
        unit: Of all values.
        values: Figures by name, ours among them.
        accuracy: Errors by name of the peer in whose row they appear; those under ``ours`` appear in every row.
        notes: Remarks by name, in the same rows.
    """
    errors, remarks = accuracy or {}, notes or {}
    rows = []
    for name in [each for each in values if each != OURS] or [OURS]:
        shown = dict.fromkeys((OURS, name))
        rows.append(
            Row(
                work=work,
                ours=values[OURS],
                unit=unit,
                peer=None if name == OURS else values[name],
                peer_name=None if name == OURS else name,
                accuracy={key: value for who in shown for key, value in errors.get(who, {}).items()} or None,
                note="; ".join(f"{who}: {remarks[who]}" for who in shown if who in remarks) or None,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format all rows as a Markdown table."""
    lines = ["| work | ours | peer | unit | ratio | peer is | accuracy |", "|---|--:|--:|---|--:|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
        remarks = [f"{name} {value:.1e}" for name, value in (row.accuracy or {}).items()]
        remarks += [row.note] if row.note else []
        cells = (row.work, _figure(row.ours), _figure(row.peer), row.unit, ratio, row.peer_name or "")
        lines.append(f"| {' | '.join(cells)} | {', '.join(remarks)} |")
    return "\n".join(lines)


def write_json(path: Path, *, machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the results as JSON."""
    result = {"machine": machine, "settings": settings, "rows": [row.to_json() for row in rows]}
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
