"""Make a local database follow its workspace when that was moved or copied: MLflow stores absolute addresses."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from csflow.errors import RegistryError
from csflow.system.progress import say
from csflow.system.workspace import Workspace

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps the addresses of artifacts."""


def follow_move(workspace: Workspace) -> None:
    """Correct the addresses of artifacts in the workspace's own database if the workspace has another path now.

    The former path is that of the experiments whose folder exists in this workspace. A database that
    ``MLFLOW_TRACKING_URI`` names is left alone, because its artifacts may belong to several workspaces.

    Raises:
        RegistryError: If the database has to be corrected and cannot be written.
    """
    database = workspace.database
    if database is None or workspace.database_is_named:
        return
    here = workspace.artifacts.as_uri()
    address = f"file:{quote(os.fsencode(database))}?mode=rw"
    try:
        with closing(sqlite3.connect(f"{address[:-2]}ro", uri=True, timeout=30)) as connection:
            former = _former_addresses(connection, workspace.artifacts, here)
    except sqlite3.Error:
        return  # MLflow, which is asked next, says what is wrong with the database
    if not former:
        return
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=30)) as connection, connection:
            for old in former:
                for table, column in _ADDRESSES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:
        raise RegistryError(
            f"The workspace was moved to {workspace.root}, and the addresses of its artifacts in {database} cannot be "
            f"corrected: {error}. Make the file writable and run the same command again."
        ) from error
    say(f"the workspace was moved: the addresses of its artifacts now begin with {here}")


def _former_addresses(connection: sqlite3.Connection, artifacts: Path, here: str) -> list[str]:
    """Return the former addresses of the folder of artifacts that its experiments still name."""
    found = set()
    for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        parent, _, name = str(location or "").rpartition("/")
        if not parent.startswith("file://") or parent == here or not name:
            continue
        moved = parent.endswith(f"/{artifacts.name}") and (artifacts / unquote(name)).is_dir()
        if moved and Path(unquote(urlsplit(parent).path)) != artifacts:
            found.add(parent)
    return sorted(found)
