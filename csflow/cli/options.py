"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from csflow.errors import UsageError

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
        help="Service account of the steps' pods.  [default: the server's]",
    ),
]


def print_json(value: object) -> None:
    """Print a value as indented JSON on standard output."""
    typer.echo(json.dumps(value, indent=2))


def require_paths(*paths: Path | None) -> None:
    """Refuse paths given on the command line that do not exist; ``None`` stands for one that was not given.

    Raises:
        UsageError: Naming the first one.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise UsageError(f"{path} does not exist. Check the path; relative ones start in {Path.cwd()}.")
