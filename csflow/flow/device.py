"""Choose the device and the precision of training, and feed the device with features."""

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
"""Returns the features of images by their indices, on the training device, channels-last in memory."""

RESIDENT_SHARE = 0.5  # of a GPU's free memory that features may take to stay there
CPUINFO = Path("/proc/cpuinfo")

_COPIED_AT_ONCE = 64  # images


class Features(Protocol):
    """Random access to batches of pyramids, which is all that training needs of a feature store."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return the float32 levels ``(len(indices), C, h, w)`` of images, finest first."""
        ...


def choose_device(training: TrainingConfig) -> torch.device:
    """Return the configured device; ``auto`` is CUDA if there is any, else the CPU (Apple's ``mps`` only by name).

    Raises:
        ModelError: If this machine does not have the configured device.
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
    """Return the configured precision; ``auto`` is bfloat16 only if the device has matrix units for it.

    Other devices emulate bfloat16: the same step was measured three times slower than in float32.
    """
    if training.precision != "auto":
        return training.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bfloat16" if device.type == "cpu" and _cpu_multiplies_bfloat16() else "float32"


def feed_device(features: Features, device: torch.device) -> Feed:
    """Return a feed that suits the device: a GPU keeps all features if they fit, and nothing waits for it."""

    def put(level: Tensor) -> Tensor:
        there = level.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else level.to(device)
        return there.contiguous(memory_format=torch.channels_last)

    if device.type == "cuda":
        size = sum(level.nbytes for level in features.batch([0])) * len(features)
        if size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            return _resident(features, put)
    return lambda indices: [put(level) for level in features.batch(indices)]


def _resident(features: Features, put: Callable[[Tensor], Tensor]) -> Feed:
    """Copy all features to the device once, where they need no more than their size, and select batches there."""
    levels: list[Tensor] = []
    for start in range(0, len(features), _COPIED_AT_ONCE):
        rows = range(start, min(start + _COPIED_AT_ONCE, len(features)))
        for scale, level in enumerate(features.batch(rows)):
            part = put(level)
            if not start:
                levels.append(_room_for(len(features), part))
            levels[scale][rows.start : rows.stop] = part

    def feed(indices: Sequence[int]) -> Pyramid:
        picked = torch.tensor(indices)
        if levels[0].is_cuda:
            picked = picked.pin_memory()
        chosen = picked.to(levels[0].device, non_blocking=True)
        return [level[chosen].contiguous(memory_format=torch.channels_last) for level in levels]

    return feed


def _room_for(images: int, part: Tensor) -> Tensor:
    """Return memory for the features of all images, on the device of a part of them."""
    size = (images, *part.shape[1:])
    return torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)


def _cpu_multiplies_bfloat16() -> bool:
    """Return True if the CPU has bf16 matrix instructions (AMX or AVX512-BF16) and oneDNN may use them."""
    flags = CPUINFO.read_text().split() if CPUINFO.exists() else []
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    allowed = limit in {"", "ALL", "DEFAULT"} or any(unit in limit for unit in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)
