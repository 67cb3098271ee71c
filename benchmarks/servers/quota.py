"""Give a server one CPU's time: by a quota of a control group where this user may set one, else one core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD = 100_000
EMPTY_SECONDS = 10


@contextmanager
def one_cpu() -> Iterator[tuple[str, Callable[[], None]]]:
    """Make the limit, and remove it at the end of the block, when what it limits must have ended.

    Yields:
        How it limits, in words, and a function that a new process calls to be limited.
    """
    group = _group()
    if group is None:
        core = min(os.sched_getaffinity(0))
        yield "one core by affinity, no quota", lambda: os.sched_setaffinity(0, {core})
        return
    members = group / "cgroup.procs"
    try:
        yield "quota of one CPU", lambda: _write(members, str(os.getpid()))
    finally:
        _remove(group)


def _group() -> Path | None:
    """Make a control group with a quota, of version 2 or 1; None if that is not possible."""
    for parent, settings in (
        (ROOT, {"cpu.max": f"{PERIOD} {PERIOD}"}),
        (ROOT / "cpu", {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(PERIOD)}),
        (ROOT / "cpu,cpuacct", {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(PERIOD)}),
    ):
        group = parent / f"csflow-benchmark-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if all((group / name).exists() for name in settings):
            for name, value in settings.items():
                _write(group / name, value)
            return group
        group.rmdir()
    return None


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)  # in such folders no file can be made
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _remove(group: Path) -> None:
    """Remove the group as soon as its processes have ended."""
    last = time.monotonic() + EMPTY_SECONDS
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.1)
        else:
            return
