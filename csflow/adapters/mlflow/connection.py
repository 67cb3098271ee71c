"""Connect to MLflow: its client, and its errors in words that name the remedy.

The other modules of this package share it (:mod:`~csflow.adapters.mlflow.tracking` for runs,
:mod:`~csflow.adapters.mlflow.registry` for models). MLflow's process-wide address is neither read nor set.
"""

from __future__ import annotations

import functools
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from csflow.adapters.mlflow.backups import list_backups
from csflow.adapters.mlflow.database import (
    damage,
    has_older_schema,
    initialise,
    is_blank,
    newer_schema,
    require_database,
    settle,
)
from csflow.adapters.mlflow.relocation import follow_move
from csflow.adapters.mlflow.traces import way_back
from csflow.errors import NotRegisteredError, RegistryError
from csflow.system.progress import say
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
Result = TypeVar("Result")
_REMEDIES = {
    "Invalid Host header": "Start the server with --allowed-hosts naming the host that it is called by.",
    "error code 401": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    "error code 403": "Ask the server's administrator for the right to write experiments and registered models.",
    "error code 404": "Is it an MLflow server? Correct MLFLOW_TRACKING_URI.",
    "Max retries exceeded": "Check that the server runs and what its log says; then run the same command again.",
}
"""Remedies by a text that occurs in MLflow's message; the first that occurs counts."""

_OTHER_SCHEMA = ("out-of-date database schema", "Can't locate revision")
_DAMAGED = ("disk image is malformed", "file is not a database", "no such table", "disk I/O error", "no such column")
"""Texts by which MLflow, Alembic and SQLite say that a database cannot be used as it is."""


def is_server(workspace: Workspace) -> bool:
    """Return True if a tracking server keeps runs and models."""
    return workspace.tracking_uri.startswith(("http://", "https://"))


def client_of(workspace: Workspace) -> MlflowClient:
    """Return MLflow's client for this workspace.

    Call this before importing any part of mlflow, which reads the settings made here when it is imported.

    Raises:
        RegistryError: If a server is configured and does not answer.
        ConfigError: If ``MLFLOW_TRACKING_URI`` names neither a server nor a database.
    """
    return _client_at(workspace.tracking_uri, workspace)


def check_registry(workspace: Workspace) -> str:
    """Look for everything that would keep a run from using the registry, and read the whole of a local database.

    Returns:
        Its address, and for a local database the number of its backups.

    Raises:
        RegistryError: If it does not answer, is lost or damaged, or a newer MLflow made it.
        ConfigError: If ``MLFLOW_TRACKING_URI`` names neither a server nor a database.
    """
    database = workspace.database
    if database is None:
        client_of(workspace)
        return workspace.tracking_uri
    try:
        require_database(workspace)
    except NotRegisteredError:
        return f"{workspace.tracking_uri}, which the first run makes"
    if found := damage(database, thorough=True) or newer_schema(database):
        raise RegistryError(f"{database} {found}. {way_back(workspace)}" if found.startswith("is ") else found)
    count = len(list_backups(database))
    return f"{workspace.tracking_uri}, {count} backup{'s' * (count != 1)}"


class _OfWorkspace(Protocol):
    """An object that calls MLflow for a workspace."""

    @property
    def workspace(self) -> Workspace: ...


Asking = TypeVar("Asking", bound=_OfWorkspace)


def typed_errors(
    method: Callable[Concatenate[Asking, P], Result],
) -> Callable[Concatenate[Asking, P], Result]:
    """Decorate a method that calls MLflow so that MLflow's errors are raised as :func:`refused` describes them.

    A local database that an older MLflow made is brought up to date; then the method is called again.
    """

    @functools.wraps(method)
    def asking(self: Asking, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            # Compared by name, because importing mlflow takes long and an earlier error does not need it.
            if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "alembic.", "sqlite3")):
                raise
            if not _is_older(self.workspace, error):
                raise refused(self.workspace, error) from error
        say(f"an older MLflow made {self.workspace.database}: it is backed up and brought up to date")
        initialise(self.workspace)
        return asking(self, *args, **kwargs)

    return asking


def _is_older(workspace: Workspace, error: Exception) -> bool:
    """Return True if MLflow says that a local database has another schema, and it is an older one."""
    database, said = workspace.database, str(error)
    other = database is not None and not is_blank(database) and any(sign in said for sign in _OTHER_SCHEMA)
    return other and database is not None and has_older_schema(database)


def refused(workspace: Workspace, error: Exception) -> RegistryError:
    """Return an error that contains MLflow's own message and, if it is known, the remedy."""
    said = str(getattr(error, "message", error)).strip()
    if any(sign in said for sign in _OTHER_SCHEMA):
        return RegistryError(_schema(workspace, said))
    if any(sign in said for sign in _DAMAGED):
        where = workspace.database or workspace.tracking_uri
        return RegistryError(f"MLflow's database {where} is damaged: {_brief(said)}. {way_back(workspace)}")
    if "attempt to write a readonly database" in said:
        return RegistryError(
            f"MLflow's database {workspace.database} cannot be written. Check its permissions and those of its folder."
        )
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in said), "")
    return RegistryError(
        f"MLflow at {workspace.tracking_uri} refused: {said}{'' if said.endswith('.') else '.'} {remedy}".rstrip()
    )


def _schema(workspace: Workspace, said: str) -> str:
    """Say that another MLflow made the database, and what to do."""
    database = workspace.database
    if database is not None and (newer := newer_schema(database)):
        return newer
    return (
        f"The database at {workspace.tracking_uri} has the schema of another MLflow: {said} Use the MLflow that "
        "its server has, or let its owner migrate it."
    )


def _brief(said: str) -> str:
    """Return what a database said without the statement and the parameters that SQLAlchemy adds."""
    return said.partition("\n")[0].rstrip(".")


@functools.cache
def _client_at(uri: str, workspace: Workspace) -> MlflowClient:
    if is_server(workspace):
        _reach(uri)
    follow_move(workspace)
    settle()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _reach(server: str) -> None:
    """Raise within seconds if the server does not answer; MLflow's own retries would take minutes."""
    try:
        urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # an HTTP error also shows that the server is there
    except (OSError, ValueError, HTTPException) as error:  # the last two for an address such as http://host:port
        raise RegistryError(
            f"No MLflow server answers at {server}: {error}. Start it, or correct MLFLOW_TRACKING_URI."
        ) from error
