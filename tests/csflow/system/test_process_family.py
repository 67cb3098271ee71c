"""A family ends with its head, whatever sessions its members made for themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from csflow.system.process_family import FAMILY, Family, guarded

POLITE = """
import pathlib, signal, subprocess, sys, time
def leave(*_):
    time.sleep(0.5)
    with open(sys.argv[1], "a") as file:
        file.write("saved\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("on", flush=True)
time.sleep(60)
"""
HEAD = """
import os, subprocess, sys, time
from csflow.system.process_family import guarded
with guarded() as family:
    middle = "import subprocess as s, sys; s.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
    subprocess.Popen([sys.executable, "-c", middle, *sys.argv[1:]], env=os.environ | family.environment,
                     start_new_session=True)
    print(family.mark, flush=True)
    time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"


def wait_for(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, "it never came true"
        time.sleep(0.05)


def started(code: str, family: Family, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of a family in a session of its own, and wait until it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | family.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    return process


@pytest.fixture
def outsider() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_end_when_the_head_is_killed(
    number: signal.Signals, tmp_path: Path, outsider: subprocess.Popen[bytes]
) -> None:
    saved = tmp_path / "saved"
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, POLITE, str(saved)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert head.stdout is not None
    family = Family(head.stdout.readline().strip())
    wait_for(lambda: len(family.members()) == 2)
    time.sleep(0.5)  # until the grandchild has its handler
    head.send_signal(number)
    head.wait()
    wait_for(lambda: not family.members())
    assert saved.read_text() == "saved\n", "it was asked once, and had its time"
    assert outsider.poll() is None


def test_after_the_block_nothing_is_left_and_the_guard_is_gone() -> None:
    with guarded() as family:
        guard = psutil.Process().children()
        process = started(STUBBORN, family)
        family.kill()
    assert process.wait(5) == -signal.SIGKILL
    assert guard
    assert not any(each.is_running() for each in guard)


def test_who_does_not_listen_is_killed_after_the_patience() -> None:
    family = Family("test-family-stubborn")
    process = started(STUBBORN, family)
    begin = time.monotonic()
    family.end(patience=0.3)
    assert process.wait(5) == -signal.SIGKILL
    assert time.monotonic() - begin >= 0.3


def test_a_family_inside_is_left_to_its_head_but_killed_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = Family("test-family-outer")
    monkeypatch.setenv(FAMILY, outer.environment[FAMILY])
    inner = started(POLITE, Family("test-family-inner"), str(tmp_path / "saved"))
    try:
        outer.ask()
        with pytest.raises(subprocess.TimeoutExpired):
            inner.wait(1.0)
        assert [process.pid for process in outer.members()] == [inner.pid]
    finally:
        outer.kill()
    assert inner.wait(5) == -signal.SIGKILL
    assert not (tmp_path / "saved").exists()
