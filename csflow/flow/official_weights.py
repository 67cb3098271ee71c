"""Load weights that were trained with the authors' code (docs/guides/official-weights.md).

Reference:
    https://github.com/marco-rudolph/cs-flow
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from csflow.config import FlowConfig
from csflow.errors import ModelError
from csflow.flow.cross_scale import CrossScaleFlow

SCALES = 3
_INPUT_NODES = 3  # the authors' module list starts with the three inputs; then permutation and coupling alternate
_CONVOLUTIONS = {
    **{f"inner.{i}": f"conv_scale{i}_0" for i in range(SCALES)},
    **{f"own.{i}": f"conv_scale{i}_1" for i in range(SCALES)},
    **{f"up.{i}": f"up_conv{i + 1}{i}" for i in range(SCALES - 1)},
    **{f"down.{i}": f"down_conv{i}{i + 1}" for i in range(SCALES - 1)},
}


def from_official(state: Mapping[str, Tensor]) -> CrossScaleFlow:
    """Build the flow that computes the same as the authors' model with this state dict.

    The permutations are not in the state dict but follow from the index of the block; ours are drawn in the same way.
    The clamp is not in it either: it is 3, as in the authors' configuration.

    Args:
        state: ``model.state_dict()`` of the authors' three-scale model, with any number of blocks, channels and widths.

    Raises:
        ModelError: If a tensor is missing, unexpected or of another shape.
    """
    blocks = sum(name.endswith(".s1.gamma0") for name in state)
    missing = sorted({source for source in _sources(max(blocks, 1)) if source not in state})
    unexpected = sorted(set(state) - set(_sources(blocks)))
    if missing or unexpected:
        raise ModelError(
            "This is not a state dict of the authors' three-scale model: "
            f"missing {_some(missing)}; unexpected {_some(unexpected)}. Pass model.state_dict() of their model."
        )
    first_convolutions = [state[f"{_coupling(k)}.s1.conv_scale0_0.weight"] for k in range(blocks)]
    first_half = state[f"{_coupling(0)}.s1.conv_scale0_0.weight"].shape[1]
    second_half = state[f"{_coupling(0)}.s2.conv_scale0_0.weight"].shape[1]
    config = FlowConfig(
        blocks=blocks,
        hidden=first_convolutions[0].shape[0],
        kernel_sizes=tuple(weight.shape[-1] for weight in first_convolutions),
        standardize=False,
    )
    flow = CrossScaleFlow(config, channels=first_half + second_half, scales=SCALES)
    try:
        flow.load_state_dict(flow.state_dict() | _rename(state, blocks))
    except RuntimeError as error:
        raise ModelError(f"The tensors contradict each other: {error}") from error
    return flow


def _rename(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    renamed = {}
    for ours, theirs in _subnets(blocks):
        renamed[f"{ours}.gamma"] = torch.cat([state[f"{theirs}.gamma{i}"] for i in range(SCALES)])
        for new, old in _CONVOLUTIONS.items():
            renamed[f"{ours}.{new}.weight"] = state[f"{theirs}.{old}.weight"]
            renamed[f"{ours}.{new}.bias"] = state[f"{theirs}.{old}.bias"]
    return renamed


def _sources(blocks: int) -> list[str]:
    tails = [f"gamma{i}" for i in range(SCALES)]
    tails += [f"{name}.{kind}" for name in _CONVOLUTIONS.values() for kind in ("weight", "bias")]
    return [f"{theirs}.{tail}" for _, theirs in _subnets(blocks) for tail in tails]


def _subnets(blocks: int) -> list[tuple[str, str]]:
    """List the prefixes of every subnet: ours and theirs."""
    return [(f"blocks.{k}.subnet_{half}", f"{_coupling(k)}.s{half}") for k in range(blocks) for half in (1, 2)]


def _coupling(block: int) -> str:
    return f"module_list.{_INPUT_NODES + 2 * block + 1}"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})" if names else "nothing"
