r"""The cross-scale flow: an invertible map between a feature pyramid and a standard normal of the same shape.

With ``y`` the features, ``z`` the latents and ``D`` the number of values of one image, the flow is trained by

.. math:: -\log p(y) = \tfrac12 \lVert z \rVert^2 + \tfrac{D}{2} \log 2\pi - \log | \det \partial z / \partial y |

``log_det`` is always :math:`\log \lvert \det \partial z / \partial y \rvert` of the direction features → latents,
per image and in nats: summed over channels, places and scales, never over the batch.

Reference:
    Rudolph et al., "Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection", WACV 2022,
    sections 3.1 and 3.2. Where the paper and the authors' code differ, the forward pass here is that of the code, so
    that weights are interchangeable (docs/guides/official-weights.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.config import FlowConfig
from csflow.errors import ModelError
from csflow.flow.convolution import convolve, convolve_enlarged

Pyramid: TypeAlias = list[Tensor]
"""Feature maps or latents, finest first; level ``i`` is ``(B, C, H / 2**i, W / 2**i)``."""

ARCTAN_GAIN = 0.636  # 2 / pi in the paper; the authors' code rounds it, and their weights were trained with it
OUTPUT_LIMIT = 1e6  # a block's outputs are cut here, as in the authors' code: keeps a far outlier finite
LEAKY_SLOPE = 0.1


def soft_clamp(values: Tensor, alpha: float) -> Tensor:
    r"""Bound the log-scale of a coupling smoothly to about ``±alpha``.

    .. math:: \sigma_\alpha(h) = 0.636 \, \alpha \arctan(h / \alpha)

    Reference:
        Rudolph et al., section 3.2 (:math:`2 / \pi`); constant as in the authors' code.
    """
    return ARCTAN_GAIN * alpha * torch.atan(values / alpha)


def latent_count(pyramid: Sequence[Tensor]) -> int:
    """Number of values of one image, ``D``: over channels, places and scales."""
    return sum(level[0].numel() for level in pyramid)


def joined(pyramid: Sequence[Tensor]) -> Tensor:
    """Levels enlarged bilinearly to the size of the first and concatenated along the channels, ``(B, C, h, w)``."""
    size = pyramid[0].shape[2:]
    enlarged = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in pyramid[1:]]
    return torch.cat([pyramid[0], *enlarged], dim=1)


class CrossScaleSubnet(nn.Module):
    r"""Internal network of a coupling: two convolutions a scale, the second one exchanging with the neighbours.

    .. math::
        a_i &= \mathrm{leaky}(\mathrm{inner}_i(x_i)) \\
        h_i &= \gamma_i \, (\mathrm{own}_i(a_i) + \mathrm{down}_{i-1}(a_{i-1}) + \mathrm{up}_i(\uparrow a_{i+1}))

    ``down[i]`` leads from scale ``i`` to the coarser ``i + 1`` (stride 2), ``up[i]`` from scale ``i + 1``, enlarged
    bilinearly, to the finer ``i``; with one scale, or without exchange, there are none. ``gamma`` starts at zero, so a
    fresh coupling is the identity.

    Args:
        inputs: Channels read.
        outputs: Channels given.
        hidden: Channels between the two convolutions.
        kernel: Odd side of every kernel.
        scales: Number of pyramid levels.
        exchange: Whether neighbouring scales exchange.

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
        """Levels ``(B, inputs, h, w)`` to levels ``(B, outputs, h, w)`` in the precision of ``gamma``."""
        inner, own, up = (cast("Iterable[nn.Conv2d]", layers) for layers in (self.inner, self.own, self.up))
        active = [_leaky(convolve(x, layer)) for x, layer in zip(pyramid, inner, strict=True)]
        sums = [convolve(a, layer) for a, layer in zip(active, own, strict=True)]
        for i, (layer, down) in enumerate(zip(up, self.down, strict=True)):
            sums[i] = sums[i] + convolve_enlarged(active[i + 1], layer)
            sums[i + 1] = sums[i + 1] + down(active[i])
        # Autocast leaves bfloat16 here; what follows decides the log-determinant and needs full precision.
        return [h.to(self.gamma.dtype) * gamma for h, gamma in zip(sums, self.gamma, strict=True)]


class CouplingBlock(nn.Module):
    r"""A fixed permutation of the channels, then two affine couplings: half 2 changes half 1, which changes half 2.

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
        exchange: Whether neighbouring scales exchange.

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
        """Features to outputs of the same shapes, and ``log_det`` ``(B,)``."""
        permuted = [level[:, order] for level, order in zip(pyramid, self.permutation, strict=True)]
        first, second = self._split(permuted)
        first, log_det_1 = self._couple(first, self.subnet_2(second))
        second, log_det_2 = self._couple(second, self.subnet_1(first))
        return self._join(first, second), log_det_1 + log_det_2

    def inverse(self, outputs: Pyramid) -> Pyramid:
        """Undo :meth:`forward`, unless it cut an output at ``OUTPUT_LIMIT``."""
        first, second = self._split(outputs)
        second = self._uncouple(second, self.subnet_1(first))
        first = self._uncouple(first, self.subnet_2(second))
        joined = [torch.cat(halves, dim=1) for halves in zip(first, second, strict=True)]
        return [level[:, order.argsort()] for level, order in zip(joined, self.permutation, strict=True)]

    def _split(self, pyramid: Pyramid) -> tuple[Pyramid, Pyramid]:
        halves = [torch.split(level, self.halves, dim=1) for level in pyramid]
        return [first for first, _ in halves], [second for _, second in halves]

    def _join(self, first: Pyramid, second: Pyramid) -> Pyramid:
        joined = (torch.cat(halves, dim=1) for halves in zip(first, second, strict=True))
        return [level.clamp(-OUTPUT_LIMIT, OUTPUT_LIMIT) for level in joined]

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


class CrossScaleFlow(nn.Module):
    """Coupling blocks on a feature pyramid, after an optional per-channel standardisation.

    With ``config.scales`` only those scales are read. With the fusion ``separate`` scales do not exchange: independent
    flows side by side. With ``concatenated`` the scales are enlarged to the finest and joined along the channels, and
    the flow has this one scale. Both are comparisons of the paper (Table 3).

    Args:
        config: Blocks, hidden channels, kernels, clamp and fusion.
        channels: Channels of every level, at least 2.
        scales: Number of pyramid levels given, at least 1.
        permutation_seed: Block ``k`` draws its permutations, finest scale first, from NumPy's ``RandomState`` seeded
            with ``permutation_seed + k``; 0 gives those of the authors' code.

    Raises:
        ModelError: If ``channels`` or ``scales`` is too small.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: FlowConfig, *, channels: int, scales: int, permutation_seed: int = 0) -> None:
        super().__init__()
        if channels < 2 or scales < 1:
            raise ModelError(f"A flow needs at least 2 channels and 1 scale, got {channels} and {scales}.")
        self.config = config
        self.given = (scales, channels)
        self.read = config.scales or tuple(range(scales))
        if self.read[-1] >= scales:
            raise ModelError(f"flow.scales names scale {self.read[-1]}, but the features have {scales} scales.")
        joined = config.fusion == "concatenated"
        self.scales = 1 if joined else len(self.read)
        self.channels = channels * len(self.read) if joined else channels
        self.register_buffer("feature_mean", torch.zeros(self.scales, self.channels))
        self.register_buffer("feature_std", torch.ones(self.scales, self.channels))
        self.blocks = nn.ModuleList(
            CouplingBlock(
                self.channels,
                hidden=config.hidden,
                kernel=kernel,
                clamp=config.clamp,
                permutation=_permutations(permutation_seed + k, self.scales, self.channels),
                exchange=config.fusion == "cross",
            )
            for k, kernel in enumerate(config.kernels)
        )

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, Tensor]:
        r"""Map features to latents.

        .. math:: z = (f_K \circ \dots \circ f_1)((y - \mu) / \sigma)

        Args:
            pyramid: Feature maps, finest first; level ``i`` is ``(B, C, H / 2**i, W / 2**i)``.

        Returns:
            Latents shaped like what :meth:`arrange` gives, which by default is the pyramid, and ``log_det`` ``(B,)``
            in nats, both at least in float32.

        Raises:
            ModelError: If the number of levels, the channels or the sizes do not fit.

        Reference:
            Rudolph et al., WACV 2022, Eq. 3 to 5.
        """
        arranged = self.arrange(pyramid)
        log_det = self._standardisation_log_det(arranged)
        latents = [
            (level.to(mean.dtype) - mean[:, None, None]) / std[:, None, None]
            for level, mean, std in zip(arranged, self.feature_mean, self.feature_std, strict=True)
        ]
        for block in self.blocks:
            latents, block_log_det = block(latents)
            log_det = log_det + block_log_det
        return latents, log_det

    def arrange(self, pyramid: Pyramid) -> Pyramid:
        """The levels that the flow reads: all of them by default, else chosen or joined as the configuration says.

        Raises:
            ModelError: If the number of levels, the channels or the sizes do not fit.
        """
        _check(pyramid, *self.given)
        chosen = [pyramid[scale] for scale in self.read]
        return [joined(chosen)] if self.config.fusion == "concatenated" else chosen

    def inverse(self, latents: Pyramid) -> Pyramid:
        """Map latents back to the features that :meth:`arrange` gave.

        Args:
            latents: As :meth:`forward` gave them.

        Raises:
            ModelError: If the number of levels, the channels or the sizes do not fit.
        """
        _check(latents, self.scales, self.channels)
        pyramid = list(latents)
        for block in reversed(self.blocks):
            assert isinstance(block, CouplingBlock)
            pyramid = block.inverse(pyramid)
        statistics = zip(pyramid, self.feature_mean, self.feature_std, strict=True)
        return [level * std[:, None, None] + mean[:, None, None] for level, mean, std in statistics]

    def nll(self, pyramid: Pyramid) -> Tensor:
        """Exact negative log-likelihood of each image's features, ``(B,)`` in nats, all constants included."""
        return self.negative_log_likelihood(*self(pyramid))

    @staticmethod
    def negative_log_likelihood(latents: Pyramid, log_det: Tensor) -> Tensor:
        """:meth:`nll` from the result of :meth:`forward`, ``(B,)`` in nats."""
        squares = torch.stack([z.square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0)
        return 0.5 * squares + 0.5 * math.log(2 * math.pi) * latent_count(latents) - log_det

    @staticmethod
    def per_dimension(nll: Tensor, pyramid: Pyramid) -> Tensor:
        """``nll`` divided by the number of values of one image: comparable between image sizes."""
        return nll / latent_count(pyramid)

    def set_standardization(self, mean: Tensor, std: Tensor) -> None:
        """Let the flow start with ``(y - mean) / std`` per scale and channel; ``log_det`` counts it.

        Args:
            mean: ``(scales, C)``.
            std: ``(scales, C)``, positive.

        Raises:
            ModelError: If a shape is wrong, a value is not finite or a ``std`` is not positive.
        """
        expected = (self.scales, self.channels)
        if tuple(mean.shape) != expected or tuple(std.shape) != expected:
            raise ModelError(
                f"Standardisation needs mean and std of shape {expected} (scales, channels), "
                f"got {tuple(mean.shape)} and {tuple(std.shape)}."
            )
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ModelError("Standardisation needs finite means and positive finite deviations: check the features.")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def _standardisation_log_det(self, pyramid: Pyramid) -> Tensor:
        per_place = self.feature_std.log().sum(dim=1)
        log_dets = [-sums * (level.shape[2] * level.shape[3]) for sums, level in zip(per_place, pyramid, strict=True)]
        return torch.stack(log_dets).sum().expand(pyramid[0].shape[0])  # not len(): a graph's batch stays open


def _check(pyramid: Sequence[Tensor], scales: int, channels: int) -> None:
    """Refuse levels that are not the flow's."""
    shapes = [tuple(level.shape) for level in pyramid]
    if len(shapes) != scales:
        raise ModelError(
            f"Expected {scales} pyramid levels, got {len(shapes)}. "
            f"Extract the features with features.scales = {scales}."
        )
    if any(len(shape) != 4 for shape in shapes):
        raise ModelError(f"Expected levels of shape (batch, channels, height, width), got {shapes}.")
    if any(shape[1] != channels for shape in shapes):
        found = sorted({shape[1] for shape in shapes})
        raise ModelError(
            f"Expected {channels} channels, got {', '.join(map(str, found))}. "
            "Extract the features with the backbone and stage this flow was made for."
        )
    batch, _, height, width = shapes[0]
    step = 2 ** (scales - 1)
    halved = [(batch, channels, height >> i, width >> i) for i in range(scales)]
    if height % step or width % step or not height * width or shapes != halved:
        sizes = ", ".join(f"{shape[0]} x {shape[2]}x{shape[3]}" for shape in shapes)
        raise ModelError(
            f"Every level must have exactly half the height and width of the one before and the same batch, got "
            f"{sizes} (batch x height x width). With {scales} scales the finest must be a multiple of {step}: "
            "choose features.image_size accordingly."
        )


class _LeakyRelu(torch.autograd.Function):
    """Keeps its output for the gradient, which the next convolution keeps anyway, and not its input."""

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


def _permutations(seed: int, scales: int, channels: int) -> Tensor:
    """``(scales, channels)``, drawn like the authors do, so that their weights need no permutations of their own."""
    generator = np.random.RandomState(seed % 2**32)
    return torch.from_numpy(np.stack([generator.permutation(channels) for _ in range(scales)])).long()
