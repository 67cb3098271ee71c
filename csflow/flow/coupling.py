"""The coupling block of the cross-scale flow: affine couplings whose subnets exchange between scales.

Reference:
    Rudolph et al., "Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection", WACV 2022, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.flow.convolution import convolve, convolve_enlarged
from csflow.flow.pyramid import Pyramid
from csflow.flow.small_maps import convolve_by_library

ARCTAN_GAIN = 0.636  # 2 / pi in the paper; the authors' code rounds it, and their weights were trained with it
OUTPUT_LIMIT = 1e6  # a block's outputs are clamped to ±this, as in the authors' code: far outliers stay finite
LEAKY_SLOPE = 0.1


def soft_clamp(values: Tensor, alpha: float) -> Tensor:
    r"""Bound the log-scale of a coupling smoothly to about ``±alpha``.

    .. math:: \sigma_\alpha(h) = 0.636 \, \alpha \arctan(h / \alpha)

    Reference:
        Rudolph et al., section 3.2 (:math:`2 / \pi`); constant as in the authors' code.
    """
    return ARCTAN_GAIN * alpha * torch.atan(values / alpha)


class CrossScaleSubnet(nn.Module):
    r"""Compute the parameters of a coupling: two convolutions a scale, the second exchanging with the neighbours.

    .. math::
        a_i &= \mathrm{leaky}(\mathrm{inner}_i(x_i)) \\
        h_i &= \gamma_i \, (\mathrm{own}_i(a_i) + \mathrm{down}_{i-1}(a_{i-1}) + \mathrm{up}_i(\uparrow a_{i+1}))

    ``down[i]`` leads from scale ``i`` to the coarser ``i + 1`` (stride 2), ``up[i]`` from scale ``i + 1``, enlarged
    bilinearly, to the finer ``i``; with one scale, or without exchange, there are none. ``gamma`` starts at zero, so a
    fresh coupling is the identity.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        hidden: Channels between the two convolutions.
        kernel: Odd side of every kernel.
        scales: Number of pyramid levels.
        exchange: True if neighbouring scales exchange.

    Reference:
        Rudolph et al., Fig. 4; one gamma a scale, before the clamp, as in the authors' code.
    """

    def __init__(
        self, inputs: int, outputs: int, *, hidden: int, kernel: int, scales: int, exchange: bool = True
    ) -> None:
        super().__init__()

        def convolutions(count: int, channels_in: int, channels_out: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2) for _ in range(count)
            )

        self.inner = convolutions(scales, inputs, hidden)
        self.own = convolutions(scales, hidden, outputs)
        neighbours = scales - 1 if exchange else 0
        self.up = convolutions(neighbours, hidden, outputs)
        self.down = convolutions(neighbours, hidden, outputs, stride=2)
        self.gamma = nn.Parameter(torch.zeros(scales))

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """Map levels ``(B, inputs, h, w)`` to levels ``(B, outputs, h, w)`` in the precision of ``gamma``."""
        inner, own, up, downs = (
            cast("Iterable[nn.Conv2d]", layers) for layers in (self.inner, self.own, self.up, self.down)
        )
        active = [_leaky(convolve(x, layer)) for x, layer in zip(pyramid, inner, strict=True)]
        sums = [convolve(a, layer) for a, layer in zip(active, own, strict=True)]
        for i, (layer, down) in enumerate(zip(up, downs, strict=True)):
            sums[i] = sums[i] + convolve_enlarged(active[i + 1], layer)
            sums[i + 1] = sums[i + 1] + convolve_by_library(active[i], down)
        # Autocast leaves bfloat16 here; what follows decides the log-determinant and needs full precision.
        return [h.to(self.gamma.dtype) * gamma for h, gamma in zip(sums, self.gamma, strict=True)]


class CouplingBlock(nn.Module):
    r"""Permute the channels, then couple twice: half 2 changes half 1, which then changes half 2.

    .. math::
        y_1' &= y_1 \odot e^{\sigma_\alpha(s_2)} + t_2, \quad (s_2, t_2) = \mathrm{subnet}_2(y_2) \\
        y_2' &= y_2 \odot e^{\sigma_\alpha(s_1)} + t_1, \quad (s_1, t_1) = \mathrm{subnet}_1(y_1')

    Args:
        channels: Channels of every level; half 1 is the first ``channels // 2``.
        hidden: Hidden channels of both subnets.
        kernel: Odd side of every kernel.
        clamp: Soft clamp ``alpha`` of the log-scale.
        permutation: ``(scales, channels)`` integers; after it, channel ``c`` of scale ``i`` holds channel
            ``permutation[i, c]`` of the input.
        exchange: True if neighbouring scales exchange.

    Reference:
        Rudolph et al., Eq. 3; order of the halves as in the authors' code.
    """

    permutation: Tensor

    def __init__(
        self,
        channels: int,
        *,
        hidden: int,
        kernel: int,
        clamp: float,
        permutation: Tensor,
        exchange: bool = True,
    ) -> None:
        super().__init__()
        scales = len(permutation)
        self.clamp = clamp
        self.halves = [channels // 2, channels - channels // 2]
        first, second = self.halves

        def subnet(inputs: int, outputs: int) -> CrossScaleSubnet:
            return CrossScaleSubnet(inputs, outputs, hidden=hidden, kernel=kernel, scales=scales, exchange=exchange)

        self.subnet_1 = subnet(first, 2 * second)
        self.subnet_2 = subnet(second, 2 * first)
        # A buffer: a state dict loaded into a differently seeded model must bring its permutations along.
        self.register_buffer("permutation", permutation)

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, Tensor]:
        """Map features to outputs of the same shapes.

        Returns:
            The outputs, and ``log_det`` ``(B,)`` in nats.
        """
        permuted = [level[:, order] for level, order in zip(pyramid, self.permutation, strict=True)]
        first, second = self._split(permuted)
        first, log_det_1 = self._couple(first, self.subnet_2(second))
        second, log_det_2 = self._couple(second, self.subnet_1(first))
        return self._join(first, second), log_det_1 + log_det_2

    def inverse(self, outputs: Pyramid) -> Pyramid:
        """Undo :meth:`forward`, unless it clamped an output to ``OUTPUT_LIMIT``."""
        first, second = self._split(outputs)
        second = self._uncouple(second, self.subnet_1(first))
        first = self._uncouple(first, self.subnet_2(second))
        whole = [torch.cat(halves, dim=1) for halves in zip(first, second, strict=True)]
        return [level[:, order.argsort()] for level, order in zip(whole, self.permutation, strict=True)]

    def _split(self, pyramid: Pyramid) -> tuple[Pyramid, Pyramid]:
        halves = [torch.split(level, self.halves, dim=1) for level in pyramid]
        return [first for first, _ in halves], [second for _, second in halves]

    def _join(self, first: Pyramid, second: Pyramid) -> Pyramid:
        whole = (torch.cat(halves, dim=1) for halves in zip(first, second, strict=True))
        return [level.clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT) for level in whole]

    def _couple(self, half: Pyramid, parameters: Pyramid) -> tuple[Pyramid, Tensor]:
        result, log_dets = [], []
        for values, (log_s, t) in zip(half, map(self._log_s_and_t, parameters), strict=True):
            result.append(values * log_s.exp() + t)
            log_dets.append(log_s.sum(dim=(1, 2, 3)))
        return result, torch.stack(log_dets).sum(dim=0)

    def _uncouple(self, half: Pyramid, parameters: Pyramid) -> Pyramid:
        pairs = map(self._log_s_and_t, parameters)
        return [(values - t) * (-log_s).exp() for values, (log_s, t) in zip(half, pairs, strict=True)]

    def _log_s_and_t(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, t = parameters.chunk(2, dim=1)
        return soft_clamp(raw, self.clamp), t


class _LeakyRelu(torch.autograd.Function):
    """Save the output for the gradient, which the next convolution keeps anyway, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.leaky_relu(x, LEAKY_SLOPE)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, grad, LEAKY_SLOPE * grad)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE) if torch.onnx.is_in_onnx_export() else cast(Tensor, _LeakyRelu.apply(x))
