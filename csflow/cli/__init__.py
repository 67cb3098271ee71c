"""The ``csflow`` command: one file a command, heavy imports only inside the commands."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from csflow.errors import CsflowError


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; a csflow error becomes its message on stderr and its exit code (2 usage, 1 failure)."""
    try:
        app()
    except CsflowError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def main() -> NoReturn:
    """Entry point of ``csflow``."""
    from csflow.cli.app import app

    run_app(app)
