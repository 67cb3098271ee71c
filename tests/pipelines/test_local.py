"""The process that runs a graph finds project, lines and workspace, wherever the command was typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from csflow.system.project import PROJECT
from csflow.system.workspace import Workspace
from pipelines.local import run_child

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TELL = """
import json, os, sys
names = ["CSFLOW_HOME", "CSFLOW_LINES", "CSFLOW_PROJECT"]
print(json.dumps({"path": sys.path} | {name: os.environ[name] for name in names}))
"""


def test_a_child_gets_folders_that_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("modules", "elsewhere/lines", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "modules" / "tell.py").write_text(TELL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("CSFLOW_LINES", "lines")
    monkeypatch.setenv(PROJECT, str(ROOT))
    log = run_child(["tell"], tmp_path / "run", Workspace(Path("home")))
    told = json.loads(log.read_text())
    assert told["CSFLOW_HOME"] == str(tmp_path / "elsewhere" / "home")
    assert told["CSFLOW_LINES"] == str(tmp_path / "elsewhere" / "lines")
    assert told["CSFLOW_PROJECT"] == str(ROOT)
    assert str(ROOT) in told["path"], "the child imports pipelines and components"


STEP = """
import os, signal, subprocess, sys, time
def save(*_):
    print("last words", flush=True)
    time.sleep(1.0)
    print("more of them", flush=True)
    open(sys.argv[1], "a").write("saved\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print(os.environ["CSFLOW_MARK"] + "ready", flush=True)
time.sleep(60)
"""
GRAPH = """
import os, sys
from pipelines.step_processes import followed, run_step
with followed():
    first = run_step(["sh", "-c", f"{sys.executable} {os.environ['STEP']} {os.environ['SAVED']}; exit $?"])
    second = run_step([sys.executable, "-c", "print('second step', flush=True)"])
sys.exit(first or second)
"""
COMMAND = """
import signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # the tests may run in the background, where SIGINT is ignored
from pathlib import Path
from csflow.errors import StoppedError
from csflow.system.workspace import Workspace
from pipelines.local import run_child
try:
    run_child(["graph"], Path(sys.argv[1]), Workspace(Path(sys.argv[1])))
except StoppedError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that runs a graph of two steps, of which the first has begun."""
    (tmp_path / "graph.py").write_text(GRAPH)
    (tmp_path / "step.py").write_text(STEP)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "STEP": str(tmp_path / "step.py"),
        "SAVED": str(tmp_path / "saved"),
        PROJECT: str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "ready" in process.stderr.readline()
    yield process
    process.kill()
    process.wait()
    assert remaining(tmp_path, seconds=20) == []


def remaining(folder: Path, *, seconds: float) -> list[list[str]]:
    """What still runs that has to do with a folder, after some seconds at most."""
    last = time.monotonic() + seconds
    while True:
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        found = [line for line in lines if any(str(folder) in word for word in line)]
        if not found or time.monotonic() > last:
            return found
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_step_save_and_starts_no_further_one(
    number: signal.Signals, command: subprocess.Popen[str], tmp_path: Path
) -> None:
    command.send_signal(number)
    assert command.wait(30) == 128 + number
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert remaining(tmp_path, seconds=0) == [], "the command is the last to go"
    assert command.stderr is not None
    said = command.stderr.read().strip().splitlines()
    assert f"Stopped by {number.name}" in said[-1]
    assert "goes on from there" in said[-1]
    log = (tmp_path / "run.log").read_text()
    assert "last words" in log
    assert "second step" not in log


def test_a_second_signal_kills(command: subprocess.Popen[str], tmp_path: Path) -> None:
    begin = time.monotonic()
    command.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 128 + signal.SIGTERM
    assert not (tmp_path / "saved").exists()
    assert time.monotonic() - begin < 10


def test_nothing_outlives_a_killed_command_and_the_step_still_saves(
    command: subprocess.Popen[str], tmp_path: Path
) -> None:
    command.kill()
    assert remaining(tmp_path, seconds=20) == []
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_nothing_outlives_a_killed_graph(command: subprocess.Popen[str], tmp_path: Path) -> None:
    (graph,) = (p for p in psutil.Process(command.pid).children() if "graph" in p.cmdline())
    graph.kill()
    assert command.wait(30) == 1, "StepError is not caught here"
    assert remaining(tmp_path, seconds=0) == []
