"""Log a table to MLflow: one run for the table, and a nested one for every row and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csflow.adapters.mlflow.runs import ablations_of, flat_params
from csflow.adapters.mlflow.tracking import Tracker
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
        self.tracker = Tracker(workspace)
        self.experiment = ablations_of(experiment)
        self.parent = self.tracker.start_run(self.experiment, params={}, tags={"table": name}, name=name)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open the parent run for the block, and mark it as failed or killed if the block ends early."""
        with raised_on_sigterm(), self.tracker.step(self.parent, "table"):
            yield

    def add(self, method: str, line: LineConfig, measured: Mapping[str, Any]) -> None:
        """Log the measurements of one row and seed."""
        run = self.tracker.start_run(
            self.experiment,
            params=flat_params(line),
            tags={"method": method},
            name=f"{method}, {line.line}, seed {line.training.seed}",
            parent=self.parent,
        )
        values: dict[str, float | None] = {"images_fit": float(measured["images"]), "seconds_fit": measured["seconds"]}
        for metric, (value, low, high) in measured["metrics"].items():
            values |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        self.tracker.log_metrics(run, values)
        self.tracker.finish(run, "measured")

    def finish(self, artifacts: Sequence[Path], outcome: str) -> None:
        """Attach files and close the parent run."""
        for file in artifacts:
            self.tracker.log_artifact(self.parent, file)
        self.tracker.finish(self.parent, outcome)
