"""The same weights under the names of every implementation.

Reference:
    docs/official-weights.md; anomalib 2.7.0 keeps the authors' names inside a coupling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

SCALES = 3
_PARTS = {
    **{f"inner.{i}": f"conv_scale{i}_0" for i in range(SCALES)},
    **{f"own.{i}": f"conv_scale{i}_1" for i in range(SCALES)},
    **{f"up.{i}": f"up_conv{i + 1}{i}" for i in range(SCALES - 1)},
    **{f"down.{i}": f"down_conv{i}{i + 1}" for i in range(SCALES - 1)},
}
OFFICIAL = "module_list.{place}.s{half}"
ANOMALIB = "graph.module_list.{place}.cross_convolution{half}"


def to_official(state: Mapping[str, Value], gammas: Mapping[str, list[Value]]) -> dict[str, Value]:
    """Our tensors under the authors' names; their couplings lie at places 4, 6, 8 and so on.

    Args:
        state: Our state dict; buffers are left out.
        gammas: Each of our ``gamma`` tensors split into one a scale.
    """
    return _renamed(state, gammas, OFFICIAL, first_place=4)


def to_anomalib(state: Mapping[str, Value], gammas: Mapping[str, list[Value]]) -> dict[str, Value]:
    """Our tensors under anomalib's names; couplings lie at places 1, 3, 5 and so on. See :func:`to_official`."""
    return _renamed(state, gammas, ANOMALIB, first_place=1)


def _renamed(
    state: Mapping[str, Value], gammas: Mapping[str, list[Value]], prefix: str, *, first_place: int
) -> dict[str, Value]:
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "blocks" or parts[2] == "permutation":
            continue
        block, half, inside = int(parts[1]), parts[2].removeprefix("subnet_"), ".".join(parts[3:5])
        theirs = prefix.format(place=first_place + 2 * block, half=half)
        if inside == "gamma":
            renamed |= {f"{theirs}.gamma{i}": gamma for i, gamma in enumerate(gammas[name])}
        else:
            renamed[f"{theirs}.{_PARTS[inside]}.{parts[-1]}"] = tensor
    return renamed
