"""Read and write the row files of ablations: the figures of one variant with one seed, or why there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from csflow.ablation.kept import read_kept, write_kept
from csflow.ablation.request import Variant
from csflow.ablation.timing import Timing
from csflow.config import Section
from csflow.metrics import Measured
from csflow.system.workspace import Workspace

UNFINISHED = (
    "The measurement has not finished: it is still running, or the process was killed, probably because memory ran "
    "out. An ablation retries this variant after all others."
)
"""The error of a row while its variant is being measured: once the process is killed, nothing can write it any more."""


class AblationRow(Section):
    """The figures of one variant with one seed, as stored in a row file.

    Attributes:
        key: Digest of data, configuration, weights and code: equal keys stand for the same experiment.
        line: Name of the line whose images judge the variant.
        seed: Seed of the training.
        config: The complete configuration, as plain JSON values.
        git_rev: Git revision of the line's data.
        images: Number of images fitted, and of each kind used to judge.
        metrics: Fractions with their 95 % intervals. Those of the test images have the names of
            :mod:`csflow.metrics`; ``synthetic_auroc`` is measured against synthetic defects.
        timing: None if it was not measured.
        parameters: Number of fitted numbers, without the backbone.
        training_seconds: Seconds of the fit, whenever it was done; None if they are no longer known.
        test_scores: Rounded scores of the ``good`` and of the ``defective`` test images; empty if one kind is missing,
            and in rows written before scores were kept.
        error: Why there are no figures; empty if there are.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # what was measured of a detector that failed may be anything

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

    @property
    def is_unfinished(self) -> bool:
        """Tell if the variant is being measured, or its measurement was killed."""
        return self.error == UNFINISHED

    @property
    def headline(self) -> str:
        """Return AUROCs and time in one line, or the error."""
        if self.error:
            return f"failed: {self.error}"
        shown = {"image AUROC": "image_auroc", "against synthetic defects": "synthetic_auroc"}
        values = [f"{name} {100 * self.metrics[key].value:.2f} %" for name, key in shown.items() if key in self.metrics]
        return ", ".join([*values, *([f"{self.timing.median_ms:.1f} ms"] if self.timing else [])])


def failed_row(variant: Variant, key: str, error: str) -> AblationRow:
    """Return a row that only tells why there are no figures."""
    line = variant.line
    config = line.model_dump(mode="json")
    return AblationRow(key=key, line=line.line, seed=line.training.seed, config=config, error=error)


def row_file(workspace: Workspace, key: str) -> Path:
    """Return the path of a row file, which all ablations of the workspace share."""
    return workspace.ablations / ".rows" / f"{key}.json"


def store_row(workspace: Workspace, row: AblationRow) -> None:
    """Write a row to its file."""
    write_kept(row_file(workspace, row.key), row)


def stored_row(workspace: Workspace, key: str) -> AblationRow | None:
    """Read a row; one that is damaged is put aside.

    Returns:
        The row; None if there is none or it was damaged: the variant is measured again then.
    """
    return read_kept(row_file(workspace, key), AblationRow)
