"""Rename the same weights for every implementation.

Reference:
    docs/guides/official-weights.md; anomalib 2.7.0 keeps the authors' names inside a coupling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SCALES = 3
_PARTS = {
    **{f"inner.{i}": f"conv_scale{i}_0" for i in range(SCALES)},
    **{f"own.{i}": f"conv_scale{i}_1" for i in range(SCALES)},
    **{f"up.{i}": f"up_conv{i + 1}{i}" for i in range(SCALES - 1)},
    **{f"down.{i}": f"down_conv{i}{i + 1}" for i in range(SCALES - 1)},
}
OFFICIAL = "module_list.{index}.s{half}"
ANOMALIB = "graph.module_list.{index}.cross_convolution{half}"


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors for the authors' code, whose couplings have the indices 4, 6, 8 and so on; omit buffers."""
    return _renamed(state, OFFICIAL, first=4)


def to_anomalib(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors for anomalib, whose couplings have the indices 1, 3, 5 and so on; omit buffers."""
    return _renamed(state, ANOMALIB, first=1)


def _renamed(state: Mapping[str, Tensor], prefix: str, *, first: int) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "blocks" or parts[2] == "permutation":
            continue
        block, half, inside = int(parts[1]), parts[2].removeprefix("subnet_"), ".".join(parts[3:5])
        theirs = prefix.format(index=first + 2 * block, half=half)
        if inside == "gamma":
            renamed |= {f"{theirs}.gamma{i}": tensor[i : i + 1] for i in range(len(tensor))}
        else:
            renamed[f"{theirs}.{_PARTS[inside]}.{parts[-1]}"] = tensor
    return renamed
