"""Run the ``csflow`` command: one file per command, with heavy imports only inside the commands."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import NoReturn

import typer

from csflow.errors import CsflowError, StoppedError
from csflow.system.files import cannot_write
from csflow.system.processes import STOP_SIGNALS, raised_on_sigterm
from csflow.system.terminal import replace_unprintable, use_utf8

_NOT_WRITABLE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""Error numbers of a full disk or a folder that cannot be written to: not a bug, so no traceback is shown."""


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; for a csflow error, print its message and exit with its code (2 for usage, 1 otherwise)."""
    from csflow.system.threads import prepare_threads

    prepare_threads()
    try:
        with raised_on_sigterm():
            app()
    except SystemExit as left:
        stops = {128 + number: number for number in (*STOP_SIGNALS, signal.SIGINT)}
        if isinstance(left.code, int) and left.code in stops:
            print(f"Stopped by {stops[left.code].name}.", file=sys.stderr)
        raise
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except CsflowError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        print(f"Error: {cannot_write(Path(error.filename or Path.cwd()), error)}", file=sys.stderr)
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
