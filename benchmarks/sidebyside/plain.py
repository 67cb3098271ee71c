"""The flow in its plainest form, with which every fast one is compared and whose arithmetic is counted.

Written from docs/guides/official-weights.md alone; it shares no code with ``csflow.flow.cross_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CLAMP = 3.0


def plain_flow(state: Mapping[str, Tensor], pyramid: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the latents and ``log_det`` ``(B,)`` of a pyramid.

    Args:
        state: State dict of a ``CrossScaleFlow`` without standardisation, in any floating dtype.
        pyramid: Levels ``(B, C, h, w)``, finest first, of the same dtype.
    """
    levels = list(pyramid)
    log_det = levels[0].new_zeros(len(levels[0]))
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for k in range(blocks):
        orders = state[f"blocks.{k}.permutation"].long()
        levels = [level[:, order] for level, order in zip(levels, orders, strict=True)]
        half = levels[0].shape[1] // 2
        first, second = [x[:, :half] for x in levels], [x[:, half:] for x in levels]
        first, change = _couple(first, _subnet(state, f"blocks.{k}.subnet_2.", second))
        log_det = log_det + change
        second, change = _couple(second, _subnet(state, f"blocks.{k}.subnet_1.", first))
        log_det = log_det + change
        levels = [torch.cat(halves, dim=1).clamp(-1e6, 1e6) for halves in zip(first, second, strict=True)]
    return levels, log_det


def plain_loss(latents: Sequence[Tensor], log_det: Tensor) -> Tensor:
    """Return the authors' loss: the mean of ``(z²/2 - log_det) / D``."""
    squares = sum(0.5 * z.square().flatten(1).sum(dim=1) for z in latents)
    return ((squares - log_det) / sum(z[0].numel() for z in latents)).mean()


def plain_scores(latents: Sequence[Tensor]) -> Tensor:
    """Return the authors' anomaly score ``(B,)``: the mean of ``z² / 2`` over all latents."""
    return torch.cat([z.flatten(1) for z in latents], dim=1).square().mean(dim=1) / 2


def training_flops(state: Mapping[str, Tensor], shapes: Sequence[tuple[int, ...]]) -> int:
    """Count the FLOPs of the plain form: one forward and backward pass over levels of these shapes, as torch counts."""
    from torch.utils.flop_counter import FlopCounterMode

    weights = {name: _on_meta(tensor) for name, tensor in state.items()}
    pyramid = [torch.empty(shape, device="meta") for shape in shapes]
    # Meta permutations have no data and cannot index meta tensors; the order does not change the count.
    identity = torch.arange(shapes[0][1], device="meta").expand(len(shapes), -1)
    weights |= {name: identity for name in state if name.endswith("permutation")}
    with FlopCounterMode(display=False) as counter:
        plain_loss(*plain_flow(weights, pyramid)).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta", requires_grad=tensor.is_floating_point())


def _subnet(state: Mapping[str, Tensor], prefix: str, pyramid: Sequence[Tensor]) -> list[Tensor]:
    def convolve(name: str, values: Tensor, stride: int = 1) -> Tensor:
        weight, bias = state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"]
        return F.conv2d(values, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    active = [F.leaky_relu(convolve(f"inner.{i}", x), 0.1) for i, x in enumerate(pyramid)]
    sums = [convolve(f"own.{i}", a) for i, a in enumerate(active)]
    for i in range(len(pyramid) - 1):
        enlarged = F.interpolate(active[i + 1], scale_factor=2.0, mode="bilinear", align_corners=False)
        sums[i] = sums[i] + convolve(f"up.{i}", enlarged)
        sums[i + 1] = sums[i + 1] + convolve(f"down.{i}", active[i], stride=2)
    return [h * gamma for h, gamma in zip(sums, state[f"{prefix}gamma"], strict=True)]


def _couple(half: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    changed, log_dets = [], []
    for values, raw in zip(half, parameters, strict=True):
        h, t = raw.chunk(2, dim=1)
        log_s = 0.636 * CLAMP * torch.atan(h / CLAMP)
        changed.append(values * log_s.exp() + t)
        log_dets.append(log_s.flatten(1).sum(dim=1))
    return changed, torch.stack(log_dets).sum(dim=0)
