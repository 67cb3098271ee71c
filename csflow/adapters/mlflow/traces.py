"""Find what earlier runs left in a workspace, to tell a lost registry from a new one."""

from __future__ import annotations

import re

from csflow.adapters.mlflow.backups import list_backups
from csflow.system.workspace import Workspace

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{32}")
_MODEL = re.compile(r"[0-9a-f]{64}(\.work)?")


def published_digests(workspace: Workspace, line: str) -> set[str]:
    """Return the digests of the detectors of a line that are published in a workspace."""
    folder = workspace.detectors / line
    return {path.name for path in folder.iterdir() if _DIGEST.fullmatch(path.name)} if folder.is_dir() else set()


def published_lines(workspace: Workspace) -> list[str]:
    """Return the lines that have a published detector or an endpoint in a workspace."""
    folders = workspace.detectors.iterdir() if workspace.detectors.is_dir() else ()
    published = {folder.name for folder in folders if published_digests(workspace, folder.name)}
    return sorted(published | {path.stem for path in workspace.endpoints.glob("*.json")})


def traces_of_runs(workspace: Workspace) -> str:
    """Return what a workspace has that only runs with a registry leave behind, in words; '' if there is nothing."""
    published = sum(len(published_digests(workspace, line)) for line in published_lines(workspace))
    endpoints = len(list(workspace.endpoints.glob("*.json")))
    runs = {path.name for path in workspace.runs.glob("*") if _RUN.fullmatch(path.name)}
    runs |= {path.name for path in workspace.artifacts.glob("*/*") if _RUN.fullmatch(path.name)}
    models = sum(1 for path in workspace.models.glob("*") if _MODEL.fullmatch(path.name))
    counts = {"published detector": published, "endpoint": endpoints, "run": len(runs), "fitted model": models}
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)


def way_back(workspace: Workspace) -> str:
    """Return the sentences that say how to bring a lost or damaged registry back."""
    database = workspace.database
    if database is None:
        return (
            "Restore the database of the MLflow server, or correct MLFLOW_TRACKING_URI if it names another server than "
            "before. See csflow restore."
        )
    backups = list_backups(database)
    named = "If MLFLOW_TRACKING_URI names another database than before, correct it. " * workspace.database_is_named
    if not backups:
        return (
            f"{named}There is no backup in {database}.backups: put a copy of the database back, or begin anew on "
            "purpose with csflow restore --start-over."
        )
    newest = backups[0]
    return (
        f"{named}Put the newest backup back with csflow restore newest (made {newest.made:%Y-%m-%d %H:%M:%S} UTC; "
        f"{newest.summary}); csflow restore lists them all. To begin anew on purpose: csflow restore --start-over."
    )
