"""Describe the machine, and measure its limits: a large matrix product in the same precision, and a memory copy."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from csflow.config import TrainingConfig
from csflow.flow.device import choose_precision
from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.process import seconds

SIDES = {"cpu": 2048, "cuda": 8192}
REPEATS = 10
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
PACKAGES = ("torch", "timm", "onnxruntime", "numpy", "pillow")


class Driver:
    """Driver that describes and measures the machine."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.settings = Bench(folder).settings
        self.device = torch.device(self.settings.device)

    def describe(self) -> dict[str, Any]:
        """Describe the machine, without its name or any path, and the precision that our training chooses."""
        training = TrainingConfig(precision=self.settings.precision, device=self.settings.device)  # type: ignore[arg-type]
        return {
            "cpu": _cpu_model(),
            "flags": [flag for flag in FLAGS if flag in _cpu_info()],
            "isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
            "load_before": round(os.getloadavg()[0], 2),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "gpu": torch.cuda.get_device_name() if self.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "precision": choose_precision(training, self.device),
            **{
                name: metadata.version(name) for name in PACKAGES if util.find_spec("PIL" if name == "pillow" else name)
            },
        }

    def matmul(self, precision: str) -> float:
        """Measure the GFLOP/s of a large square matrix product."""
        side = SIDES[self.device.type]
        a = torch.randn(side, side, device=self.device, dtype=getattr(torch, precision))
        return 2 * side**3 / self._time(lambda: a @ a) / 1e9

    def copy(self) -> float:
        """Measure the GB/s copied within memory; a byte that is read and written counts once."""
        size = COPIED[self.device.type]
        source = torch.ones(size // 4, device=self.device)
        target = torch.empty_like(source)
        return size / self._time(lambda: target.copy_(source)) / 1e9

    def _time(self, work: Any) -> float:
        def once() -> None:
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        once()
        # A limit is what is possible, so the best time counts and not the median.
        return min(seconds(once) for _ in range(REPEATS))


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().split() if path.exists() else []


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
