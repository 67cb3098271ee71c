"""Describe the machine of a measurement."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the machine, without its name or any path.

    Args:
        packages: Names of packages whose versions matter; those that are not installed are left out.
    """
    return {
        "cpu": _cpu_model(),
        "flags": [flag for flag in FLAGS if flag in _cpu_info()],
        "isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "load_before": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        **{name: version for name in packages if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().split() if path.exists() else []


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
