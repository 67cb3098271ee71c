"""Processes: telling them apart for good, ending them politely, and how much memory this one took."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn


def start_time(pid: int) -> str | None:
    """When a process started, as an opaque text; ``None`` if it is not there or only waits to be reaped.

    A process number is used again after a while; together with the start it names one process for good.
    """
    if Path("/proc/self/stat").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def is_running(pid: int, started: str) -> bool:
    """Whether the process with this number is still the one that started then."""
    return start_time(pid) == started


def end(pid: int, started: str, *, patience: float) -> None:
    """Ask a process to end, and kill it when it has not after ``patience`` seconds."""
    for kind, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        if is_running(pid, started):
            with suppress(ProcessLookupError):
                os.kill(pid, kind)
        last = time.monotonic() + seconds
        while is_running(pid, started) and time.monotonic() < last:
            time.sleep(0.05)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, as Python turns Ctrl-C into an exception by itself, so that cleaning up runs."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def peak_memory() -> int:
    """The most memory this process ever held, in bytes, mapped files that were read included."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _from_proc(pid: int) -> str | None:
    try:
        # The second field, the command in parentheses, may hold blanks and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _from_ps(pid: int) -> str | None:
    """For systems without ``/proc``, such as macOS."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
