"""Describe an MLflow run of a line and the parameter names that every run of a line shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csflow.adapters.mlflow import page
from csflow.config import CalibrationConfig, LineConfig

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Run:
    """A pipeline run as MLflow recorded it.

    Attributes:
        run_id: MLflow's id.
        status: ``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        started: When the first step opened it, in UTC.
        experiment: MLflow's id of its experiment.
    """

    run_id: str
    status: str
    started: datetime
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    experiment: str = ""

    @classmethod
    def of(cls, run: MlflowRun) -> Run:
        """Make a run from MLflow's own description of it."""
        return cls(
            run_id=run.info.run_id,
            status=run.info.status,
            started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            params=dict(run.data.params),
            metrics=page.read_metrics(run.data.metrics),
            tags=page.read_tags(run.data.tags),
            experiment=str(run.info.experiment_id),
        )

    @property
    def outcome(self) -> str:
        """Return the outcome of its last step; if there is none, where it failed, or else its status."""
        if self.status == "FINISHED":
            return self.tags.get("outcome", "finished")
        step = self.tags.get("failed_step")
        return f"{self.status.lower()} in {step}" if step else self.status.lower()

    @property
    def seconds(self) -> float:
        """Return the total duration of its steps."""
        return sum(value for name, value in self.metrics.items() if name.startswith("seconds_"))


def flat_params(line: LineConfig) -> dict[str, str]:
    """Flatten the configuration to names such as ``features.image_size``, which are the same for every run.

    >>> from csflow.config import DataConfig
    >>> flat_params(LineConfig(line="tiles", data=DataConfig(path="tiles")))["features.image_size"]
    '384'
    """
    elsewhere = {"line", "description", "detector", "serving", "schedule", "resources"}
    sections = line.model_dump(mode="json", exclude=elsewhere)
    if sections["calibration"] == "none":
        sections["calibration"] = dict.fromkeys(CalibrationConfig.model_fields, "none")
    flat = {f"{section}.{key}": _text(value) for section, keys in sections.items() for key, value in keys.items()}
    return {"detector": line.detector, **flat}


def ablations_of(line: str) -> str:
    """Return the name of the experiment of a line's ablations; no line can have that name."""
    return f"{line}.ablations"


def _text(value: object) -> str:
    return "none" if value is None else str(value)
