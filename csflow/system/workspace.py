"""Name the folder of everything that csflow makes: ``.csflow`` in the project, unless ``CSFLOW_HOME`` names another."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from csflow.errors import ConfigError, UsageError
from csflow.system.project import project_folder

TRACKING = "MLFLOW_TRACKING_URI"
"""Environment variable that names MLflow's server or database."""

LONGEST_ROOT = 400
"""Bytes of the longest path of a workspace: SQLite opens files whose path is at most 512 bytes long."""

_SQLITE = re.compile(r"sqlite(\+\w+)?:///(?!:memory:)(?P<path>[^?]+)(\?.*)?")
_SERVER = re.compile(r"(https?|(postgresql|mysql|mssql)(\+\w+)?)://.+|databricks(-uc)?(://.+)?")


@dataclass(frozen=True)
class Workspace:
    """Folders under one root, none of which exists until something is written there."""

    root: Path

    @classmethod
    def from_environment(cls) -> Workspace:
        """Return the workspace that ``CSFLOW_HOME`` names, else ``.csflow`` in the project's folder.

        Outside of a project (see :mod:`csflow.system.project`) that is ``.csflow`` in the current folder.

        Raises:
            UsageError: If ``CSFLOW_PROJECT`` names a folder that is not a project, or the workspace cannot have the
                path it has.
        """
        named = os.environ.get("CSFLOW_HOME")
        return cls(_usable(Path(named) if named else project_folder() / ".csflow"))

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
    def artifacts(self) -> Path:
        """Return the folder of MLflow's artifacts, unless a server keeps them: ``mlartifacts/EXPERIMENT/``."""
        return self.root.absolute() / "mlartifacts"

    @property
    def database_is_named(self) -> bool:
        """Return True if ``MLFLOW_TRACKING_URI`` names MLflow's server or database."""
        return bool(os.environ.get(TRACKING, "").strip())

    @property
    def database(self) -> Path | None:
        """Return the SQLite file that keeps runs and models; ``None`` if a server does.

        Raises:
            ConfigError: As :attr:`tracking_uri`.
        """
        if not self.database_is_named:
            return self.root / "mlflow.db"
        match = _SQLITE.fullmatch(self.tracking_uri)
        return Path(unquote(match["path"])).absolute() if match else None

    @property
    def tracking_uri(self) -> str:
        """Return MLflow's address: ``MLFLOW_TRACKING_URI``, else an SQLite file under the root.

        Raises:
            ConfigError: If the variable names neither a server nor a database.
        """
        if not self.database_is_named:
            return sqlite_address(self.root / "mlflow.db")
        named = os.environ[TRACKING].strip()
        if _SQLITE.fullmatch(named) or _SERVER.fullmatch(named):
            return named
        folder = " a folder: MLflow cannot keep registered models in plain files any more," if _is_folder(named) else ""
        raise ConfigError(
            f"{TRACKING} is {named!r},{folder} expected the address of a server (http://HOST:5000) or of a database "
            "(sqlite:////PATH/mlflow.db). Correct it, or unset it to use the workspace's own database. To copy runs "
            "out of such a folder: mlflow migrate-filestore --help."
        )


def sqlite_address(database: Path) -> str:
    """Return the address of an SQLite file as SQLAlchemy reads it: it decodes ``%20`` and cuts at a question mark."""
    path = str(database)
    if "?" not in path and not re.search("%[0-9A-Fa-f]{2}", path):
        return f"sqlite:///{path}"
    # With the plain scheme MLflow would also create a folder with the encoded name.
    return f"sqlite+pysqlite:///{path.replace('%', '%25').replace('?', '%3F')}"


def _is_folder(named: str) -> bool:
    return named.startswith("file:") or "://" not in named


def _usable(root: Path) -> Path:
    """Return the absolute path of a workspace.

    Raises:
        UsageError: If no workspace can be there.
    """
    try:
        path = root.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or the home of a user who does not exist
        raise UsageError(f"The workspace {str(root)!r} cannot be found: {error}. Correct CSFLOW_HOME.") from error
    if any(ord(character) < 32 or ord(character) == 127 for character in str(path)):
        raise UsageError(
            f"The workspace {str(path)!r} has a line break or another control character in its path. "
            "Set CSFLOW_HOME to a folder without."
        )
    try:
        length = len(str(path).encode())
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The workspace {str(path)!r} has a byte in its path that is no UTF-8. Set CSFLOW_HOME to a folder without."
        ) from error
    if length > LONGEST_ROOT:
        raise UsageError(
            f"The path of the workspace has {length} bytes, expected at most {LONGEST_ROOT}: {path}. "
            "Set CSFLOW_HOME to a shorter one."
        )
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise UsageError(f"The workspace {path} cannot be a folder: {nearest} is a file. Set CSFLOW_HOME to a folder.")
    return path
