"""The state of one run: its servers, the shared folder, the process that sends, and the rows so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

from sidebyside.process import Worker
from sidebyside.rows import Row, rows_of

from servers import materials
from servers.contenders import Contender
from servers.running import Running
from servers.settings import LINE, OTHER, Settings

WARM = 3
"""Requests after the start that nobody measures."""


@dataclass
class Session:
    """The state that the works share.

    Attributes:
        settings: The settings of the run.
        folder: Files of the run.
        contenders: The servers, ours first.
        rows: Results.
    """

    settings: Settings
    folder: Path
    contenders: Sequence[Contender]
    rows: list[Row] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _kept: dict[str, Running] | None = None
    _until_the_end: ExitStack = field(default_factory=ExitStack)

    def load(self, width: int | None = None) -> Worker:
        """Start a process that sends requests to detectors of a width, by default that of the settings."""
        scores = materials.scores_file(self.folder, width or self.settings.width)
        return Worker(sys.executable, ("load", str(self.folder), str(scores)), threads=1)

    def log(self, contender: Contender) -> Path:
        """Return a new file for the output of a server."""
        return self.folder / f"{contender.name.replace(' ', '-')}-{next(self._numbers)}.log"

    def model(self, contender: Contender, width: int) -> Path:
        """Return the model of a width, made at the first call, as are the correct scores."""
        materials.scores(self.folder, width, self.settings)
        return materials.model(contender, self.folder, width, self.settings)

    @contextmanager
    def together(self) -> Iterator[dict[str, Running]]:
        """Start all servers, with two lines each, and score some images; they end with the block or with the run."""
        if self._kept is not None:
            yield self._kept
            return
        models = {each.name: self.model(each, self.settings.width) for each in self.contenders}
        with ExitStack() as stack:
            servers = {
                each.name: stack.enter_context(
                    each.serve([(line, models[each.name]) for line in (LINE, OTHER)], self.log(each))
                )
                for each in self.contenders
            }
            with self.load() as load:
                for running in servers.values():
                    for line in (LINE, OTHER):
                        asked = {"port": running.port, "protocol": "v1", "clients": 1}
                        load.call("closed", **asked, seconds=0, line=line, least=WARM)
            if not self.settings.fresh:
                self._kept = servers
                self._until_the_end.push(stack.pop_all())
            yield servers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._until_the_end.close()

    def add(
        self,
        work: str,
        unit: str,
        values: Mapping[str, float],
        accuracy: Mapping[str, Mapping[str, float]] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Add one row for every peer in ``values``; see :func:`sidebyside.rows.rows_of`."""
        self.rows += rows_of(work, unit, values, accuracy, notes)


def accuracy_of(worst: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the largest errors of scores as ``accuracy`` of rows; only ours are bounded."""
    return {name: {"scores" if name == "ours" else "scores of the peer": value} for name, value in worst.items()}


def percentile(milliseconds: Sequence[float], share: int) -> float:
    """Return a percentile of times, the largest of too few."""
    if len(milliseconds) < 2:
        return milliseconds[0] if milliseconds else 0.0
    return median(milliseconds) if share == 50 else quantiles(milliseconds, n=100, method="inclusive")[share - 1]


def errors_of(result: Mapping[str, Any]) -> str:
    """Return how often requests were refused, in words; empty if none was."""
    return ", ".join(f"{number} × {status}" for status, number in sorted(result["errors"].items()))
