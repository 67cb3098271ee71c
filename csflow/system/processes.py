"""Identify processes even if their ids are reused, end them gracefully, and measure the memory of this one."""

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
    """Return the start of a process as an opaque text; ``None`` if it does not exist or is a zombie.

    The system reuses process ids; an id together with the start identifies one process for good.
    """
    if Path("/proc/self/stat").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def is_running(pid: int, started: str) -> bool:
    """Return True if the process with this id is running and is the one that started then."""
    return start_time(pid) == started


def end(pid: int, started: str, *, patience: float) -> None:
    """Ask a process to end, and kill it if it has not ended after ``patience`` seconds."""
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
    """Turn SIGTERM into `SystemExit` inside the block, so that cleanup runs as it does after Ctrl-C."""
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
    """Return the peak memory of this process in bytes, including the mapped files that it has read."""
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
    """Return the start of a process on systems without ``/proc``, such as macOS."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
