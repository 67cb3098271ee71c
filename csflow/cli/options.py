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
