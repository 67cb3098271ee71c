"""Name the folder of everything that csflow makes: ``.csflow`` in the project, unless ``CSFLOW_HOME`` names another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from csflow.system.project import project_folder


@dataclass(frozen=True)
class Workspace:
    """Places under one root. Nothing is created until someone writes there."""

    root: Path

    @classmethod
    def from_environment(cls) -> Workspace:
        """Return the workspace that ``CSFLOW_HOME`` names, else ``.csflow`` in the project's folder.

        Outside of a project (see :mod:`csflow.system.project`) that is ``.csflow`` in the current folder.

        Raises:
            UsageError: If ``CSFLOW_PROJECT`` names a folder that is not a project.
        """
        named = os.environ.get("CSFLOW_HOME")
        return cls(Path(named).resolve() if named else project_folder() / ".csflow")

    @property
    def data(self) -> Path:
        """Checked-out data: ``data/LINE/DIGEST/``."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """The content-addressed feature store."""
        return self.root / "features"

    @property
    def models(self) -> Path:
        """Trained models and their checkpoints, by training key: ``models/KEY/``."""
        return self.root / "models"

    @property
    def detectors(self) -> Path:
        """Published detectors: ``detectors/LINE/DIGEST/``."""
        return self.root / "detectors"

    @property
    def endpoints(self) -> Path:
        """State of local endpoints: ``endpoints/LINE.json``."""
        return self.root / "endpoints"

    @property
    def runs(self) -> Path:
        """Working files of pipeline runs: ``runs/RUN_ID/``."""
        return self.root / "runs"

    @property
    def ablations(self) -> Path:
        """Ablations ``LINE/DIGEST/`` and, for all of them, ``.rows/KEY.json``, ``.timings/`` and ``.synthetic/``."""
        return self.root / "ablations"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address: ``MLFLOW_TRACKING_URI``, else SQLite under the root."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
