"""Keep the last distinct states of the local tracking database as backups, and put one of them back.

The backups of ``mlflow.db`` are files in the folder ``mlflow.db.backups`` next to it. Each is a complete SQLite
database, made while other processes may be writing. Two databases have the same state if their registries say the
same (models, versions, tags, aliases); of each state the newest backup is kept, so that many runs that change nothing
do not push older states out.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from csflow.errors import RegistryError, UsageError
from csflow.system.files import cannot_write

KEPT = 5
"""Number of backups, each of another state of the registry."""

_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{12})\.db")
_REGISTRY = (
    "registered_models",
    "registered_model_tags",
    "registered_model_aliases",
    "model_versions",
    "model_version_tags",
)
_ALIVE = "current_stage != 'Deleted_Internal'"
"""Condition by which MLflow tells versions from those that were deleted."""

_COMPANIONS = ("-journal", "-wal", "-shm")
"""Suffixes of the files that SQLite keeps next to a database in use."""


@dataclass(frozen=True)
class Backup:
    """A backup of a tracking database.

    Attributes:
        path: The file.
        made: When it was made, in UTC.
        champions: Number of the champion version of every line that had one.
        versions: Number of versions of every line.
    """

    path: Path
    made: datetime
    champions: Mapping[str, int]
    versions: Mapping[str, int]

    @property
    def summary(self) -> str:
        """Return what it holds, in words, for instance ``tile: 3 versions, champion 2``."""
        lines = [
            f"{line}: {count} version{'s' * (count != 1)}, "
            + (f"champion {self.champions[line]}" if line in self.champions else "no champion")
            for line, count in sorted(self.versions.items())
        ]
        return "; ".join(lines) or "no versions"


def backups_folder(database: Path) -> Path:
    """Return the folder of a database's backups."""
    return database.with_name(f"{database.name}.backups")


def list_backups(database: Path) -> list[Backup]:
    """List the backups of a database, newest first; files that are damaged or have another name are left out."""
    folder = backups_folder(database)
    found = []
    for path in sorted(folder.glob("*.db"), reverse=True) if folder.is_dir() else []:
        if _NAME.fullmatch(path.name):
            with suppress(sqlite3.Error):
                found.append(_read(path))
    return found


def back_up(database: Path, *, always: bool = False) -> Path | None:
    """Back a database up, unless it has no registered version.

    The present state replaces the backup of an equal one; the oldest of more than :data:`KEPT` backups is removed.

    Args:
        database: The database.
        always: If True, back it up even without a registered version.

    Returns:
        The new backup; ``None`` if there is nothing to back up.

    Raises:
        CsflowError: If the backup cannot be written.
        RegistryError: If the database cannot be read.
    """
    folder = backups_folder(database)
    try:
        with _opened(database) as source:
            if not always and not _count(source, "model_versions"):
                return None
            state = _state(source)
            folder.mkdir(exist_ok=True)
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{state}.db"
            with _new_file(folder / name) as unfinished, closing(sqlite3.connect(unfinished)) as target:
                source.backup(target)
    except sqlite3.Error as error:
        raise RegistryError(f"{database} cannot be backed up to {folder}: {error}. Is the disk full?") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    _remove_old(folder, state, keep=folder / name)
    return folder / name


def restore(database: Path, which: str) -> tuple[Backup, Path | None]:
    """Put a backup in the place of a database; the present file is kept under another name.

    Args:
        database: The database, which may be missing or damaged.
        which: ``newest``, the name of a backup, or the path of any file that is a tracking database.

    Returns:
        The backup, and the new name of what was there before; ``None`` if nothing was there.

    Raises:
        UsageError: If there is no such backup.
        RegistryError: If the backup itself is damaged.
    """
    path = _chosen(database, which)
    try:
        backup = _read(path)
        with _opened(path) as source:
            answer = source.execute("PRAGMA integrity_check").fetchone()[0]
            if answer != "ok":
                raise sqlite3.DatabaseError(answer)
            with _new_file(database) as unfinished:
                with closing(sqlite3.connect(unfinished)) as target:
                    source.backup(target)
                before = _put_aside(database)
    except sqlite3.Error as error:
        raise RegistryError(f"{path} is no intact tracking database: {error}. Choose another backup.") from error
    return backup, before


def _chosen(database: Path, which: str) -> Path:
    known = list_backups(database)
    if which == "newest" and known:
        return known[0].path
    for path in (backups_folder(database) / which, Path(which)):
        if which != "newest" and path.is_file():
            return path
    names = ", ".join(backup.path.name for backup in known) or "none"
    raise UsageError(f"There is no backup {which!r} of {database}. Backups: {names}. See csflow restore.")


def _put_aside(database: Path) -> Path | None:
    """Rename a database and the files that SQLite keeps next to it, which would damage another database."""
    aside = database.with_name(f"{database.name}.{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.replaced")
    for suffix in _COMPANIONS:
        with suppress(FileNotFoundError):
            Path(f"{database}{suffix}").rename(f"{aside}{suffix}")
    try:
        database.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def _remove_old(folder: Path, state: str, *, keep: Path) -> None:
    found = sorted((path for path in folder.glob("*.db") if _NAME.fullmatch(path.name)), reverse=True)
    equal = [path for path in found if path != keep and path.name.endswith(f"-{state}.db")]
    distinct = [path for path in found if path not in equal]
    for path in [*equal, *distinct[KEPT:]]:
        path.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading; without this mode SQLite would create a missing one."""
    with closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes ``path`` when the block succeeds, fsynced."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        for suffix in ("", *_COMPANIONS):
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)


def _read(path: Path) -> Backup:
    with _opened(path) as connection:
        connection.execute("SELECT version_num FROM alembic_version")  # fails for other databases
        counted, champions = {}, {}
        if _has(connection, "model_versions"):
            counted = dict(
                connection.execute(f"SELECT name, count(*) FROM model_versions WHERE {_ALIVE} GROUP BY name")
            )
        if _has(connection, "registered_model_aliases"):
            champions = dict(
                connection.execute("SELECT name, version FROM registered_model_aliases WHERE alias = 'champion'")
            )
    match = _NAME.fullmatch(path.name)
    made = (
        datetime.strptime(f"{match[1]}+0000", "%Y%m%dT%H%M%S.%fZ%z")
        if match
        else datetime.fromtimestamp(path.stat().st_mtime, UTC)
    )
    return Backup(path, made, _by_line(champions), _by_line(counted))


def _by_line(numbers: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix("csflow-"): number for name, number in numbers.items() if name.startswith("csflow-")}


def _count(connection: sqlite3.Connection, table: str) -> int:
    if not _has(connection, table):
        return 0
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _has(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
    return found.fetchone() is not None


def _state(connection: sqlite3.Connection) -> str:
    """Return the digest of what the registry says."""
    digest = hashlib.sha256()
    for table in (name for name in _REGISTRY if _has(connection, name)):
        for row in sorted(repr(row) for row in connection.execute(f"SELECT * FROM {table}")):
            digest.update(f"{table} {row}\n".encode())
    return digest.hexdigest()[:12]
