"""The state of one run: its implementations, the shared folder, and the rows so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sidebyside.process import Worker
from sidebyside.rows import OURS as OURS
from sidebyside.rows import Row, rows_of
from sidebyside.settings import Settings


@dataclass(frozen=True)
class Peer:
    """Another implementation.

    Attributes:
        name: Name in the table.
        python: Interpreter that can import it.
        role: Its driver.
        arguments: Arguments of the driver besides the folder.
        whole: True if it has epochs, trainings and a model file, and not only a step and a score.
    """

    name: str
    python: str
    role: str
    arguments: tuple[str, ...] = ()
    whole: bool = False


@dataclass
class Session:
    """The state that the works share.

    Attributes:
        settings: The settings of the run.
        folder: Files of the run.
        peers: The other implementations that are measured.
        facts: Numbers that several works need (parameters, arithmetic, limits, precision).
        rows: Results.
    """

    settings: Settings
    folder: Path
    peers: Sequence[Peer]
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def ours(self, role: str) -> Worker:
        """Start a process of ours."""
        return Worker(sys.executable, (role, str(self.folder)), threads=self.settings.threads)

    def peer(self, peer: Peer) -> Worker:
        """Start a process of a peer."""
        arguments = (peer.role, str(self.folder), *peer.arguments)
        return Worker(peer.python, arguments, threads=self.settings.threads)

    @contextmanager
    def together(self, role: str, peers: Sequence[Peer]) -> Iterator[dict[str, Worker]]:
        """Start our process for a work and the peers', by name; all end with the block."""
        with ExitStack() as stack:
            workers = {OURS: stack.enter_context(self.ours(role))}
            workers |= {peer.name: stack.enter_context(self.peer(peer)) for peer in peers}
            yield workers

    def add(
        self,
        work: str,
        unit: str,
        values: Mapping[str, float],
        accuracy: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Add one row for every peer in ``values``, or one without a peer.

        Args:
            work: Name of the row.
            unit: Of all values.
            values: Figures by name, ours among them.
            accuracy: Errors by name of the peer in whose row they appear; those under ``ours`` appear in every row.
        """
        self.rows += rows_of(work, unit, values, accuracy)

    def add_fraction(self, work: str, flops: float, elapsed: float, precision: str) -> None:
        """Add the share of the machine's matrix product that a work reaches, if that was measured."""
        limit = self.facts.get(f"matmul {precision}")
        if limit:
            self.rows.append(
                Row(f"{work} (part of the matrix product's rate)", flops / elapsed / 1e9 / limit, "of limit")
            )


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: median(values) for name, values in times.items()}
