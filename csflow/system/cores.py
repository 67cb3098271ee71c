"""Count the CPU cores that this process may use, and tell how busy they are.

The affinity mask says which cores a process may run on. A quota says for how much of their time it may run at all: 2.0
on 16 cores means that 16 threads are stopped for 7 of every 8 time slices, and that threads which wait for each other
wait for those that are stopped. Containers have such quotas: ``resources.limits.cpu`` on Kubernetes, ``--cpus`` of
Docker.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_PROC, _STAT = Path("/proc/self"), Path("/proc/stat")

BUSY = 0.2
"""Cores used by other processes above which a machine counts as busy; an idle system stays below."""


def cores() -> int:
    """Return the number of cores this process may use: those of its affinity mask, or fewer if it has a quota.

    A quota is rounded down, because of two threads on one and a half cores each would wait for the other.
    """
    quota = cpu_quota()
    return cores_in_reach() if quota is None else max(1, min(cores_in_reach(), int(quota)))


def cores_in_reach() -> int:
    """Return the number of cores this process may run on, whatever its quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return how many cores' time the control groups of this process allow; ``None`` without a quota.

    The quota of each group above counts as well. Version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) of
    control groups are read.

    Args:
        proc: Folder of the process in ``/proc``.
    """
    try:
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return None
    paths = {kind: path for _, kinds, path in memberships for kind in kinds.split(",")}
    found = [quota for folder in _groups(paths, mounts) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def busy_seconds() -> float | None:
    """Return the CPU seconds since boot, of all processes, on the cores in reach; None if not on Linux."""
    if not _STAT.exists():
        return None
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in _STAT.read_text().splitlines()]
    # user, nice and system; idle and iowait are left out; then irq, softirq, and steal: time taken by other guests.
    ticks = sum(int(word) for name, *words in lines if name in usable for word in (*words[:3], *words[5:8]))
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_elsewhere(seconds: float = 1.0) -> float | None:
    """Watch for a while how many of the cores in reach other processes keep busy; None if the system does not say.

    Args:
        seconds: How long to watch; this process only waits meanwhile.
    """
    before, began = busy_seconds(), time.perf_counter()
    if before is None:
        return None
    time.sleep(seconds)
    after = busy_seconds()
    return None if after is None else max(0.0, (after - before) / (time.perf_counter() - began))


def _groups(paths: Mapping[str, str], mounts: list[list[str]]) -> Iterator[Path]:
    """Yield the folders of the process's groups that can have a CPU quota, and of all groups above them."""
    for mount in mounts:
        if len(mount) < 10 or "-" not in mount:
            continue
        root, point = (_unescaped(word) for word in mount[3:5])
        kind, _, options = mount[mount.index("-") + 1 :][:3]
        if kind == "cgroup2" and "" in paths:
            own = paths[""]
        elif kind == "cgroup" and "cpu" in options.split(",") and "cpu" in paths:
            own = paths["cpu"]
        else:
            continue
        # Without a namespace of its own, a container sees its path from the machine's root and mounts only its part.
        inside = os.path.relpath(own, root)
        parts = () if inside == "." or inside.startswith("..") else Path(inside).parts
        for depth in range(len(parts) + 1):
            yield Path(point, *parts[:depth])


def _quota_of(folder: Path) -> float | None:
    """Return the quota of one group in cores; None if it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _unescaped(word: str) -> str:
    r"""Return a path as ``mountinfo`` means it: blanks are written ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)
