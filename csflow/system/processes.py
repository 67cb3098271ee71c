"""Identify processes even if their ids are reused, end them gracefully, and measure the memory of this one."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end and that Python does not turn into an exception itself, as it does with SIGINT."""


def start_time(pid: int) -> str | None:
    """Return the start of a process as an opaque text; ``None`` if it does not exist or is a zombie.

    The system reuses process ids; an id together with the start identifies one process for good.
    """
    try:
        # Counted from the start of the system, in clock ticks: the wall clock may be set while the process runs.
        booted = psutil.boot_time()
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return str(round((process.create_time() - booted) * os.sysconf("SC_CLK_TCK")))
    except psutil.Error:
        return None


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
    """Turn SIGTERM and SIGHUP into `SystemExit` inside the block, so that cleanup runs as it does after Ctrl-C.

    Only the first signal counts: a further one would interrupt the cleanup. Signals that are ignored, as under
    ``nohup``, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    received: list[int] = []

    def leave(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            return
        raise SystemExit(128 + number)

    with handled_by(leave, STOP_SIGNALS):
        yield


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object], signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Let a function handle signals inside the block, except those that are ignored."""
    former = {number: signal.getsignal(number) for number in signals}
    for number, before in former.items():
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            # None stands for a handler that was not set from Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if before is None else before)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, including the mapped files that it has read."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
