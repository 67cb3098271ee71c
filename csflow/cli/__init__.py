"""Run the ``csflow`` command: one file per command, with heavy imports only inside the commands."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import typer

from csflow.errors import CsflowError
from csflow.system.terminal import replace_unprintable, use_utf8

_NOT_WRITABLE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""Error numbers of a full disk or a folder that cannot be written to: not a bug, so no traceback is shown."""


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; for a csflow error, print its message and exit with its code (2 for usage, 1 otherwise)."""
    try:
        app()
    except CsflowError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        print(f"Error: {error}. Free disk space, check permissions, or choose another folder.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def main() -> NoReturn:
    """Run the command ``csflow``."""
    use_utf8()
    replace_unprintable()
    from csflow.cli.app import app

    run_app(app)
