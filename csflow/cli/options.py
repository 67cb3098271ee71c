"""Define options and arguments that several commands share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from csflow.errors import ConfigError, UsageError
from csflow.system.project import find_project, no_project_message

LineArgument: TypeAlias = Annotated[str, typer.Argument(metavar="LINE", help="Name of a line, or its YAML file.")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ForceOption: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Train again from another seed even if nothing has changed.")
]
AccountOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--service-account",
        envvar="CSFLOW_SERVICE_ACCOUNT",
        help="Service account of the steps' pods.",
        show_default="the server's",
    ),
]


_PICTURES = ("scores", "roc", "features", "training", "localisation", "mistakes")
"""Names of the pictures that a report may have."""


def print_json(value: object) -> None:
    """Print a value as indented JSON on standard output."""
    typer.echo(json.dumps(value, indent=2))


def require_line_names() -> list[str]:
    """Return the names of all lines.

    Raises:
        ConfigError: If there are none; the message names the folder that was searched.
    """
    from csflow.config import line_names, lines_folder

    names = line_names()
    if names:
        return names
    missing = f"No YAML files in {lines_folder()}."
    if os.environ.get("CSFLOW_LINES"):
        raise ConfigError(f"{missing} Add one, or correct CSFLOW_LINES.")
    raise ConfigError(f"{missing} {no_project_message() if find_project() is None else 'Add one: NAME.yaml.'}")


def require_paths(*paths: Path | None) -> None:
    """Refuse paths given on the command line that do not exist; ``None`` stands for one that was not given.

    Raises:
        UsageError: If a path does not exist; the message names the first one.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise UsageError(f"{path} does not exist. Check the path; relative ones start in {Path.cwd()}.")


def require_replaceable(path: Path, mark: bytes) -> None:
    """Refuse to replace a file that csflow did not make.

    Args:
        path: File to be written.
        mark: Bytes that every such file of csflow contains.

    Raises:
        UsageError: If there is a file or folder without the mark.
    """
    if not (path.exists() or path.is_symlink()):
        return
    if not path.is_file() or mark not in path.read_bytes():
        raise UsageError(f"{path} would be replaced, but csflow did not make it. Choose another name, or move it.")


def require_report_folder(folder: Path) -> None:
    """Refuse a folder in which a report would replace files that csflow did not make.

    Raises:
        UsageError: If there is a file or folder with the name of a part of a report, but no report.
    """
    require_replaceable(folder / "report.json", b'"calibration"')
    if (folder / "report.json").exists():
        return
    names = ("report.html", "samples", *(f"{name}.png" for name in _PICTURES))
    foreign = [str(folder / name) for name in names if (folder / name).exists()]
    if foreign:
        raise UsageError(
            f"{', '.join(foreign)} would be replaced, but csflow did not make it. Choose another folder with --out."
        )
