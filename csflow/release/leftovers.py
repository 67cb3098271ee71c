"""List what runs leave in a workspace besides models and features: folders of runs, old checkouts, unfinished files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from csflow.release.prune_plan import PrunePlan, Removal, size_of
from csflow.system.workspace import Workspace

_COMMAND = re.compile(r".+-\d{8}-\d{6}-\d+")
"""Folder of a command: log, error, and what a killed one had not removed yet."""

_RUN = re.compile(r"[0-9a-f]{32}")
"""Folder of an MLflow run: reports and comparisons, of which MLflow has a copy."""

_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}(\.tmp)?")
"""What was being written when its writer was killed; csflow 0.5 and older wrote it without the suffix."""


def add_runs(made: PrunePlan, workspace: Workspace, needed: set[str]) -> None:
    """Add old folders of runs, except those of the runs that made versions which stay."""
    folders = [path for path in workspace.runs.glob("*") if path.is_dir() and path.name not in needed]
    _add(made, "logs of runs", _named(folders, _COMMAND))
    _add(made, "reports of runs without a version", _named(folders, _RUN))


def add_checkouts(made: PrunePlan, workspace: Workspace) -> None:
    """Add checked-out images that were not used for long, except the last ones of each line; they can be fetched."""
    for line in workspace.data.glob("*"):
        checkouts = [path for path in line.glob("[0-9a-f]*") if (path / "listing.json").is_file()]
        earlier = sorted(checkouts, key=lambda path: path.stat().st_mtime)[:-1]
        _add(made, f"checked-out images of {line.name}", earlier)


def add_unfinished(made: PrunePlan, workspace: Workspace) -> None:
    """Add what killed processes were writing."""
    folders = [workspace.root, workspace.runs, workspace.models, workspace.endpoints, workspace.ablations]
    for several in ("data/*", "detectors/*", "features/*", "features/*/??", "ablations/*"):
        folders += workspace.root.glob(several)
    paths = [path for folder in folders for path in folder.glob(".*")]
    _add(made, "unfinished files", _named(paths, _UNFINISHED))


def _named(paths: Iterable[Path], pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in paths if pattern.fullmatch(path.name)]


def _add(made: PrunePlan, what: str, paths: Iterable[Path]) -> None:
    going = tuple(sorted(path for path in paths if made.policy.is_old(path)))
    made.add(Removal(what, "workspace", sum(size_of(path) for path in going), paths=going))
