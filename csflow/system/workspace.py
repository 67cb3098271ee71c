"""Name the folder of everything that csflow makes: ``.csflow`` in the project, unless ``CSFLOW_HOME`` names another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from csflow.system.project import project_folder


@dataclass(frozen=True)
class Workspace:
    """Folders under one root, none of which exists until something is written there."""

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
        """Return the folder of checked-out data: ``data/LINE/DIGEST/``."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """Return the folder of the content-addressed feature store."""
        return self.root / "features"

    @property
    def models(self) -> Path:
        """Return the folder of trained models and their checkpoints, by training key: ``models/KEY/``."""
        return self.root / "models"

    @property
    def detectors(self) -> Path:
        """Return the folder of published detectors: ``detectors/LINE/DIGEST/``."""
        return self.root / "detectors"

    @property
    def endpoints(self) -> Path:
        """Return the folder of the state of local endpoints: ``endpoints/LINE.json``."""
        return self.root / "endpoints"

    @property
    def runs(self) -> Path:
        """Return the folder of the working files of pipeline runs: ``runs/RUN_ID/``."""
        return self.root / "runs"

    @property
    def ablations(self) -> Path:
        """Return the folder of ablations.

        It contains ``LINE/DIGEST/`` and, for all ablations, ``.rows/KEY.json``, ``.timings/`` and ``.synthetic/``.
        """
        return self.root / "ablations"

    @property
    def tracking_uri(self) -> str:
        """Return MLflow's address: ``MLFLOW_TRACKING_URI``, else an SQLite file under the root."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
