"""Look after the local database of MLflow: create it, bring it up to date, and recognise a lost or damaged one."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from csflow.adapters.mlflow.backups import back_up
from csflow.adapters.mlflow.traces import traces_of_runs, way_back
from csflow.errors import NotRegisteredError, RegistryError
from csflow.system.files import cannot_write, exclusive
from csflow.system.loggers import log_level
from csflow.system.workspace import Workspace, sqlite_address

_MAGIC = b"SQLite format 3\0"
NEWER = (
    "{database} was made by a newer MLflow (its schema is {found}; the installed MLflow knows {head} and older). "
    "Nothing was changed. Install the MLflow that made it (pip install --upgrade mlflow), or go back to a backup: "
    "csflow restore."
)


def initialise(workspace: Workspace, *, anew: bool = False) -> None:
    """Bring the local tracking database to the schema of the installed MLflow, creating it if needed.

    MLflow itself leaves a broken database if two processes create it at once, or if one is killed while creating it.
    Here one process works at a time, and a new database gets its final name only when it is complete. Older databases
    are backed up before they are migrated. With a tracking server, which looks after its own database, nothing is done.

    Args:
        workspace: Names the database.
        anew: If True, create a missing database even if earlier runs have left something in the workspace.

    Raises:
        RegistryError: If the database is lost or damaged, or a newer MLflow made it.
        CsflowError: If the database cannot be created.
    """
    database = workspace.database
    if database is None:
        return
    with exclusive(lock_of(database)):
        if is_blank(database):
            if not anew:
                _require_new(workspace, database)
            _create_database(database)
        else:
            require_intact(workspace, database)
            try:
                outdated = _is_outdated(database)
            except sqlite3.DatabaseError as error:
                raise _damaged(workspace, database, f"is damaged (SQLite says: {error})") from error
            if outdated:
                _migrate(workspace, database)


def lock_of(database: Path) -> Path:
    """Return the lock file of whoever creates, migrates, moves or replaces a database."""
    return database.with_name(f".{database.name}.lock")


def require_database(workspace: Workspace) -> None:
    """Refuse to read a local database that is missing or damaged; MLflow would create an empty one.

    Raises:
        NotRegisteredError: If nothing has run in the workspace yet.
        RegistryError: If the database is lost or damaged.
    """
    database = workspace.database
    if database is None:
        return
    if is_blank(database):
        _require_new(workspace, database)
        raise NotRegisteredError(
            f"Nothing has run here yet: {database} {_absence(database)}. Run a pipeline first (csflow run "
            "LINE), or set CSFLOW_HOME to the workspace that holds your runs and models."
        )
    require_intact(workspace, database)


def is_blank(database: Path) -> bool:
    """Return True if a database is missing, empty, or an SQLite file without any table."""
    try:
        size, start = database.stat().st_size, _start_of(database)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise RegistryError(f"{database} cannot be read: {error.strerror}. Restore it: csflow restore.") from error
    if size == 0 or not start.startswith(_MAGIC):
        return size == 0
    try:
        with _opened(database) as connection:
            return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    except sqlite3.Error:
        return False


def require_intact(workspace: Workspace, database: Path) -> None:
    """Refuse a file that is no SQLite database or has lost its end.

    Raises:
        RegistryError: If it is damaged; the message says how to go back.
    """
    if found := damage(database):
        raise _damaged(workspace, database, found)


def _damaged(workspace: Workspace, database: Path, found: str) -> RegistryError:
    return RegistryError(f"MLflow's database {database} {found}. {way_back(workspace)}")


def damage(database: Path, *, thorough: bool = False) -> str:
    """Return what is wrong with a database, in words; '' if nothing was found.

    Args:
        database: The file.
        thorough: If True, read all of it; otherwise only its first bytes and its size are looked at.
    """
    start, size = _start_of(database), database.stat().st_size
    if not start.startswith(_MAGIC):
        return "is not an SQLite database"
    page = int.from_bytes(start[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(start[28:32], "big")
    # A process that is writing may be about to lengthen the file, so SQLite has the last word.
    if not thorough and size >= expected:
        return ""
    try:
        with _opened(database) as connection:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        answer = str(error)
    if answer == "ok":
        return ""
    return (
        f"is damaged ({size} of {expected} bytes; SQLite says: {answer})"
        if size < expected
        else (f"is damaged (SQLite says: {answer})")
    )


def newer_schema(database: Path) -> str:
    """Return the message that says that a newer MLflow made a database; '' if none did."""
    try:
        found, head, known = _revisions(database)
    except sqlite3.Error:
        return ""
    return "" if found is None or known else NEWER.format(database=database, found=found, head=head)


def has_older_schema(database: Path) -> bool:
    """Return True if an older MLflow made a database, so that it can be migrated."""
    try:
        found, head, known = _revisions(database)
    except sqlite3.Error:
        return False
    return known and found != head


def settle() -> None:
    """Switch off MLflow's telemetry and progress bars; must be called before mlflow is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def quiet() -> Iterator[None]:
    """Let MLflow and its migrations log nothing but errors inside the block."""
    with log_level(logging.ERROR, "mlflow", "alembic"):
        yield


def _require_new(workspace: Workspace, database: Path) -> None:
    """Refuse a blank database in a workspace that had another one before."""
    if left := traces_of_runs(workspace):
        raise RegistryError(
            f"The registry is lost: {database} {_absence(database)}, but {workspace.root} still has {left}. A run "
            f"would begin again with version 1, without gate, hold and history. {way_back(workspace)}"
        )


def _absence(database: Path) -> str:
    return "is empty" if database.exists() else "does not exist"


def _start_of(database: Path) -> bytes:
    with database.open("rb") as file:
        return file.read(100)


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


def _migrate(workspace: Workspace, database: Path) -> None:
    back_up(database, always=True)
    try:
        _upgrade(database)
    # Alembic passes on the errors of every migration.
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise RegistryError(
            f"{database} cannot be brought up to the schema of the installed MLflow: {said}. {way_back(workspace)}"
        ) from error


def _upgrade(database: Path) -> None:
    settle()
    from mlflow.db import upgrade

    with quiet():
        assert upgrade.callback is not None
        upgrade.callback(sqlite_address(database))


def _is_outdated(database: Path) -> bool:
    """Return True if the schema is older than that of the installed MLflow.

    Raises:
        RegistryError: If it is newer.
    """
    found, head, known = _revisions(database)
    if found is not None and not known:
        raise RegistryError(NEWER.format(database=database, found=found, head=head))
    return found != head


def _revisions(database: Path) -> tuple[str | None, str, bool]:
    """Return the schema of a database, that of the installed MLflow, and True if this MLflow knows the former."""
    settle()
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store import db_migrations

    with _opened(database) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            row = None
    scripts = ScriptDirectory(str(Path(next(iter(db_migrations.__path__)))))
    head = str(scripts.get_current_head())
    if row is None or row[0] == head:
        return (head if row else None), head, True
    try:
        known = scripts.get_revision(row[0]) is not None
    except CommandError:
        known = False
    return str(row[0]), head, known


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    address = f"file:{quote(os.fsencode(database))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=30)) as connection:
        yield connection
