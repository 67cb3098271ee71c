"""Connect to MLflow: its address, its client, and the local database that is used without a server.

The other modules of this package share it (:mod:`~csflow.adapters.mlflow.tracking` for runs,
:mod:`~csflow.adapters.mlflow.registry` for models). MLflow's process-wide address is neither read nor set.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from csflow.errors import NotRegisteredError, RegistryError
from csflow.system.files import cannot_write, exclusive
from csflow.system.loggers import log_level
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
Result = TypeVar("Result")
_SQLITE = "sqlite:///"
_REMEDIES = {
    "Invalid Host header": "Start the server with --allowed-hosts naming the host that it is called by.",
    "error code 401": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    "error code 403": "Ask the server's administrator for the right to write experiments and registered models.",
    "error code 404": "Is it an MLflow server? Correct MLFLOW_TRACKING_URI.",
    "Max retries exceeded": "Check that the server runs and what its log says; then run the same command again.",
}
"""Remedies by a text that occurs in MLflow's message; the first that occurs counts."""


def initialise(workspace: Workspace) -> None:
    """Bring the local tracking database to the schema of the installed MLflow, creating it if needed.

    MLflow itself leaves a broken database if two processes create it at once, or if one is killed while creating it.
    Here one process works at a time, and a new database gets its final name only when it is complete. Older databases
    are copied before they are migrated. With a tracking server, which looks after its own database, nothing is done.

    Raises:
        CsflowError: If the database cannot be created.
    """
    database = database_file(workspace)
    if database is None:
        return
    with exclusive(database.with_name(f".{database.name}.lock")):
        if not database.exists():
            _create_database(database)
        elif _is_outdated(workspace.tracking_uri):
            _migrate_database(database)


def database_file(workspace: Workspace) -> Path | None:
    """Return the SQLite file behind the tracking address; ``None`` if that names a server."""
    uri = workspace.tracking_uri
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def is_server(workspace: Workspace) -> bool:
    """Return True if a tracking server keeps runs and models."""
    return workspace.tracking_uri.startswith(("http://", "https://"))


def require_database(workspace: Workspace) -> None:
    """Refuse to read a local database that does not exist, because MLflow would create an empty one.

    Raises:
        NotRegisteredError: If there is no local database.
    """
    database = database_file(workspace)
    if database is not None and not database.exists():
        raise NotRegisteredError(
            f"Nothing has run here yet: {database} does not exist. Run a pipeline first (csflow run "
            "LINE), or set CSFLOW_HOME to the workspace that holds your runs and models."
        )


def client_of(workspace: Workspace) -> MlflowClient:
    """Return MLflow's client for this workspace.

    Call this before importing any part of mlflow, which reads the settings made here when it is imported.

    Raises:
        RegistryError: If a server is configured and does not answer.
    """
    return _client_at(workspace.tracking_uri)


class _OfWorkspace(Protocol):
    """An object that calls MLflow for a workspace."""

    @property
    def workspace(self) -> Workspace: ...


Asking = TypeVar("Asking", bound=_OfWorkspace)


def typed_errors(
    method: Callable[Concatenate[Asking, P], Result],
) -> Callable[Concatenate[Asking, P], Result]:
    """Decorate a method that calls MLflow so that MLflow's errors are raised as :func:`refused` describes them."""

    @functools.wraps(method)
    def asking(self: Asking, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            # Compared by name, because importing mlflow takes long and an earlier error does not need it.
            if not type(error).__module__.startswith("mlflow."):
                raise
            raise refused(self.workspace, error) from error

    return asking


def refused(workspace: Workspace, error: Exception) -> RegistryError:
    """Return an error that contains MLflow's own message and, if it is known, the remedy."""
    said = str(getattr(error, "message", error)).strip()
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in said), "")
    return RegistryError(
        f"MLflow at {workspace.tracking_uri} refused: {said}{'' if said.endswith('.') else '.'} {remedy}".rstrip()
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Let MLflow and its migrations log nothing but errors inside the block."""
    with log_level(logging.ERROR, "mlflow", "alembic"):
        yield


@functools.cache
def _client_at(uri: str) -> MlflowClient:
    if uri.startswith(("http://", "https://")):
        _reach(uri)
    _settle()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _reach(server: str) -> None:
    """Raise within seconds if the server does not answer; MLflow's own retries would take minutes."""
    try:
        urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # an HTTP error also shows that the server is there
    except OSError as error:
        raise RegistryError(
            f"No MLflow server answers at {server}: {error}. Start it, or correct MLFLOW_TRACKING_URI."
        ) from error


def _create_database(database: Path) -> None:
    unfinished = database.with_name(f".{database.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        _upgrade(unfinished)
        unfinished.replace(database)
    except OSError as error:
        raise cannot_write(database, error) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _migrate_database(database: Path) -> None:
    """Copy the database, then migrate it in place, because other processes have it open."""
    shutil.copy2(database, database.with_name(f"{database.name}.{datetime.now(UTC):%Y%m%dT%H%M%S}.bak"))
    _upgrade(database)


def _upgrade(database: Path) -> None:
    _settle()
    from mlflow.db import upgrade

    with quiet():
        assert upgrade.callback is not None
        upgrade.callback(f"{_SQLITE}{database}")


def _is_outdated(uri: str) -> bool:
    """Return True if the schema is not that of the installed MLflow."""
    _settle()
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    with closing(sqlite3.connect(uri.removeprefix(_SQLITE))) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return True
    folder = Path(next(iter(db_migrations.__path__)))
    return found is None or found[0] != ScriptDirectory(str(folder)).get_current_head()


def _settle() -> None:
    """Switch off MLflow's telemetry and progress bars; must be called before mlflow is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
