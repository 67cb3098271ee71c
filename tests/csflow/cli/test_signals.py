"""A command that is asked to end cleans up, says so, and ends with 128 and the number of the signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import os, signal, sys, time
from pathlib import Path
import typer
from csflow.cli import run_app
from csflow.errors import StoppedError
app = typer.Typer()
@app.command()
def work(number: int, folder: Path) -> None:
    try:
        if number == signal.SIGINT:  # the tests may run in the background, where it is ignored
            signal.signal(number, signal.default_int_handler)
        os.kill(os.getpid(), number)
        time.sleep(20)
    finally:
        (folder / "cleaned").touch()
@app.command()
def stopped(number: int, folder: Path) -> None:
    raise StoppedError(number, "Go on with the same command.")
run_app(app)
"""


@pytest.mark.parametrize(("number", "says"), [(15, "Stopped by SIGTERM."), (1, "Stopped by SIGHUP."), (2, "")])
def test_a_signal_ends_a_command_in_order(number: int, says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, "work", str(number), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert (tmp_path / "cleaned").exists()
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_last_line_of_a_stopped_run_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, "stopped", "15", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "Stopped by SIGTERM. Go on with the same command.\n")
