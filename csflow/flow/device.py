"""Where training computes: device, precision, and how the features get there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from csflow.config import TrainingConfig
from csflow.errors import ModelError
from csflow.flow.pyramid import Pyramid

Precision = Literal["float32", "bfloat16"]

Feed: TypeAlias = Callable[[Sequence[int]], Pyramid]
"""Batches of features by position, on the training device, channels-last in memory."""

RESIDENT_SHARE = 0.5  # of a GPU's free memory that features may take to stay there
CPUINFO = Path("/proc/cpuinfo")


class Features(Protocol):
    """What training needs of a feature store: random access to batches of pyramids."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Float32 levels ``(len(indices), C, h, w)``, finest first."""
        ...


def choose_device(training: TrainingConfig) -> torch.device:
    """The device asked for; ``auto`` takes CUDA if there is any, else the CPU (Apple's ``mps`` only by name).

    Raises:
        ModelError: If the device asked for is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = training.device
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        present = ", ".join(device for device, here in available.items() if here)
        raise ModelError(f"training.device is {name}, but this machine has {present}. Set it to auto.")
    return torch.device(name)


def choose_precision(training: TrainingConfig, device: torch.device) -> Precision:
    """The precision asked for; ``auto`` takes bfloat16 only where the device has matrix units for it.

    Elsewhere bfloat16 is emulated: the same step was measured three times slower than in float32.
    """
    if training.precision != "auto":
        return training.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if device.type == "cpu" and _cpu_multiplies_bfloat16() else "float32"


def feed_device(features: Features, device: torch.device) -> Feed:
    """Features as the device is best fed: a GPU keeps all of them if they fit, and is never waited for."""

    def place(level: Tensor) -> Tensor:
        there = level.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else level.to(device)
        return there.contiguous(memory_format=torch.channels_last)

    if device.type == "cuda":
        size = sum(level.nbytes for level in features.batch([0])) * len(features)
        if size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            return _resident(features, place)
    return lambda indices: [place(level) for level in features.batch(indices)]


def _resident(features: Features, place: Callable[[Tensor], Tensor]) -> Feed:
    """All features laid on the device once, then picked there."""
    starts = range(0, len(features), 64)
    parts = [[place(level) for level in features.batch(range(i, min(i + 64, len(features))))] for i in starts]
    levels = [torch.cat(same_scale) for same_scale in zip(*parts, strict=True)]

    def feed(indices: Sequence[int]) -> Pyramid:
        picked = torch.tensor(indices)
        if levels[0].is_cuda:
            picked = picked.pin_memory()
        chosen = picked.to(levels[0].device, non_blocking=True)
        return [level[chosen].contiguous(memory_format=torch.channels_last) for level in levels]

    return feed


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has bf16 matrix instructions (AMX or AVX512-BF16) and oneDNN may use them."""
    flags = CPUINFO.read_text().split() if CPUINFO.exists() else []
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    allowed = limit in {"", "ALL", "DEFAULT"} or any(unit in limit for unit in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)
