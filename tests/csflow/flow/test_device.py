"""Choice of device and precision, and how features reach a device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from csflow.config import TrainingConfig
from csflow.errors import ModelError
from csflow.flow import device as device_module
from csflow.flow.device import choose_device, choose_precision, feed_device
from csflow.flow.pyramid import Pyramid


class Images:
    """150 pyramids of two scales, all different."""

    levels = (torch.randn(150, 3, 4, 4), torch.randn(150, 3, 2, 2))

    def __len__(self) -> int:
        return 150

    def batch(self, indices: Sequence[int]) -> Pyramid:
        return [level[list(indices)] for level in self.levels]


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("fpu avx2", None, "float32"),
        ("fpu avx2 avx512_bf16 amx_bf16 amx_tile", None, "bfloat16"),
        ("fpu avx2 avx512_bf16", None, "bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "AVX512_CORE_VNNI", "float32"),
        ("fpu avx512_bf16 amx_bf16", "avx512_core_bf16", "bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "AVX512_CORE_AMX", "bfloat16"),
        ("fpu avx512_bf16 amx_bf16", "DEFAULT", "bfloat16"),
        ("fpu avx2", "AVX512_CORE_AMX", "float32"),
        (None, None, "float32"),
    ],
)
def test_cpu_precision_follows_its_matrix_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, limit: str | None, expected: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(device_module, "CPUINFO", cpuinfo)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision(TrainingConfig(), torch.device("cpu")) == expected
    assert choose_precision(TrainingConfig(precision="float32"), torch.device("cpu")) == "float32"
    assert choose_precision(TrainingConfig(precision="bfloat16"), torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpu_precision_follows_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(TrainingConfig(), torch.device("cuda")) == expected


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(TrainingConfig()).type == "cpu"
    with pytest.raises(ModelError, match=r"training\.device is cuda, but this machine has cpu"):
        choose_device(TrainingConfig(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(TrainingConfig()).type == "cuda"
    assert choose_device(TrainingConfig(device="cpu")).type == "cpu"


def test_resident_features_are_those_of_the_store() -> None:
    """What a GPU does with features that fit in its memory."""
    images = Images()
    feed = device_module._resident(images, lambda level: level)
    for found, expected in zip(feed([149, 3, 64, 3]), images.batch([149, 3, 64, 3]), strict=True):
        assert torch.equal(found, expected)


def test_features_are_laid_on_a_device_without_a_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the part that is being copied is there twice."""
    alive, most = 0, 0

    def put(level: torch.Tensor) -> torch.Tensor:
        nonlocal alive, most
        part = level.clone(memory_format=torch.channels_last)
        alive += part.nbytes
        most = max(most, alive)
        weakref.finalize(part, gone, part.nbytes)
        return part

    def gone(size: int) -> None:
        nonlocal alive
        alive -= size

    allocated = []
    empty = torch.empty

    def counted(*arguments: Any, **keywords: Any) -> torch.Tensor:
        made = empty(*arguments, **keywords)
        allocated.append(made.nbytes)
        return made

    monkeypatch.setattr(device_module, "_COPIED_AT_ONCE", 10)
    monkeypatch.setattr(torch, "empty", counted)
    images = Images()
    feed = device_module._resident(images, put)
    whole = sum(level.nbytes for level in images.levels)
    assert sum(allocated) == whole
    assert most <= 2 * whole * 10 / 150, "at most the part before and the present one"
    for found, expected in zip(feed(range(150)), images.levels, strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_cpu_is_fed_from_the_store_channels_last() -> None:
    images = Images()
    fed = feed_device(images, torch.device("cpu"))([5, 2])
    for found, expected in zip(fed, images.batch([5, 2]), strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
