"""A table in MLflow: one run for the table, and nested in it one for every row and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csflow.adapters.mlflow import tracking
from csflow.config import LineConfig
from csflow.system.processes import raised_on_sigterm
from csflow.system.workspace import Workspace


class TableRun:
    """The runs of one table.

    Args:
        workspace: Names the tracker.
        experiment: A line, or a data set of many lines.
        name: Of the parent run.
    """

    def __init__(self, workspace: Workspace, experiment: str, name: str) -> None:
        self.workspace = workspace
        self.experiment = tracking.ablations_of(experiment)
        self.parent = tracking.start_run(workspace, self.experiment, params={}, tags={"table": name}, name=name)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around everything that is measured: what ends it early marks the parent run as failed or killed."""
        with raised_on_sigterm(), tracking.step(self.workspace, self.parent, "table"):
            yield

    def add(self, method: str, line: LineConfig, measured: Mapping[str, Any]) -> None:
        """Log what one row and seed measured."""
        run = tracking.start_run(
            self.workspace,
            self.experiment,
            params=tracking.flat_params(line),
            tags={"method": method},
            name=f"{method}, {line.line}, seed {line.training.seed}",
            parent=self.parent,
        )
        values: dict[str, float | None] = {"images_fit": float(measured["images"]), "seconds_fit": measured["seconds"]}
        for metric, (value, low, high) in measured["metrics"].items():
            values |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        tracking.log_metrics(self.workspace, run, values)
        tracking.finish(self.workspace, run, "measured")

    def finish(self, artifacts: Sequence[Path], outcome: str) -> None:
        """Attach files and close the parent run."""
        for file in artifacts:
            tracking.log_artifact(self.workspace, self.parent, file)
        tracking.finish(self.workspace, self.parent, outcome)
