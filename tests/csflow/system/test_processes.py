"""Processes are told apart and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from csflow.system import processes

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_process_is_known_by_number_and_start() -> None:
    started = processes.start_time(os.getpid())
    assert started
    assert processes.is_running(os.getpid(), started)
    assert not processes.is_running(os.getpid(), started + "0")


def test_a_dead_process_is_not_there_even_before_it_is_reaped() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(process.pid) is None
    process.wait()
    assert processes.start_time(process.pid) is None


def test_a_process_that_does_not_listen_is_killed(stubborn: subprocess.Popen[str]) -> None:
    started = processes.start_time(stubborn.pid)
    assert started
    begin = time.monotonic()
    processes.end(stubborn.pid, started, patience=0.3)
    assert 0.3 <= time.monotonic() - begin < 5
    assert not processes.is_running(stubborn.pid, started)


def test_another_process_under_the_same_number_is_left_alone(stubborn: subprocess.Popen[str]) -> None:
    processes.end(stubborn.pid, "another start", patience=0.1)
    assert stubborn.poll() is None


def test_peak_memory_stays_after_the_memory_is_given_back() -> None:
    script = (
        "from csflow.system.processes import peak_memory\n"
        "before = peak_memory()\n"
        "block = b'x' * 200_000_000\n"
        "del block\n"
        "print(before, peak_memory())"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = (int(word) for word in shown.split())
    assert 5e6 < before < 2e8
    assert 1.9e8 < after - before < 2.5e8


def test_sigterm_becomes_an_exception_and_only_inside() -> None:
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)

    with processes.raised_on_sigterm(), pytest.raises(SystemExit) as left:
        stopped()
    assert left.value.code == 128 + signal.SIGTERM
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_interrupt_the_cleanup() -> None:
    cleaned = []

    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            cleaned.append(True)

    with processes.raised_on_sigterm(), pytest.raises(SystemExit) as left:
        stopped()
    assert left.value.code == 128 + signal.SIGHUP
    assert cleaned


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.raised_on_sigterm():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)
