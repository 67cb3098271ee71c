"""Describe the machine, and measure its limits: a large matrix product in the same precision, and a memory copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from csflow.config import TrainingConfig
from csflow.flow.device import choose_precision
from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.machine import describe
from sidebyside.process import seconds

SIDES = {"cpu": 2048, "cuda": 8192}
REPEATS = 10
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes
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
            **describe(PACKAGES),
            "gpu": torch.cuda.get_device_name() if self.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "precision": choose_precision(training, self.device),
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
