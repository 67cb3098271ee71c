r"""The cross-scale flow: an invertible map between a feature pyramid and a standard normal of the same shape.

With ``y`` the features, ``z`` the latents and ``D`` the number of values of one image, the flow is trained by

.. math:: -\log p(y) = \tfrac12 \lVert z \rVert^2 + \tfrac{D}{2} \log 2\pi - \log | \det \partial z / \partial y |

``log_det`` is always :math:`\log \lvert \det \partial z / \partial y \rvert` of the direction features → latents,
per image and in nats: summed over channels, pixels and scales, never over the batch.

Reference:
    Rudolph et al., "Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection", WACV 2022,
    sections 3.1 and 3.2. Where the paper and the authors' code differ, the forward pass here is that of the code, so
    that weights are interchangeable (docs/guides/official-weights.md).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from csflow.config import FlowConfig
from csflow.errors import ModelError
from csflow.flow.coupling import CouplingBlock
from csflow.flow.pyramid import Pyramid, check_levels, join_scales, latent_count


class CrossScaleFlow(nn.Module):
    """Map feature pyramids to latents by coupling blocks, after an optional standardisation of every channel.

    With ``config.scales`` only those scales are read. With the fusion ``separate`` the scales do not exchange: they
    are independent flows. With ``concatenated`` the scales are enlarged to the finest and concatenated along the
    channels, and the flow has this one scale. Both are comparisons of the paper (Table 3).

    Args:
        config: Blocks, hidden channels, kernels, clamp and fusion.
        channels: Channels of every level, at least 2.
        scales: Number of pyramid levels of the features, at least 1.
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
        is_joined = config.fusion == "concatenated"
        self.scales = 1 if is_joined else len(self.read)
        self.channels = channels * len(self.read) if is_joined else channels
        self.register_buffer("feature_mean", torch.zeros(self.scales, self.channels))
        self.register_buffer("feature_std", torch.ones(self.scales, self.channels))
        self.blocks = nn.ModuleList(
            CouplingBlock(
                self.channels,
                hidden=config.hidden,
                kernel=kernel,
                clamp=config.clamp,
                permutation=draw_permutations(permutation_seed + k, self.scales, self.channels),
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
            Latents of the shapes that :meth:`arrange` returns, by default those of ``pyramid``, and ``log_det``
            ``(B,)`` in nats; both at least in float32.

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
        """Return the levels that the flow reads: by default all, else chosen or joined as the configuration says.

        Raises:
            ModelError: If the number of levels, the channels or the sizes do not fit.
        """
        check_levels(pyramid, *self.given)
        chosen = [pyramid[scale] for scale in self.read]
        return [join_scales(chosen)] if self.config.fusion == "concatenated" else chosen

    def inverse(self, latents: Pyramid) -> Pyramid:
        """Map latents back to the features that :meth:`arrange` returned.

        Args:
            latents: As :meth:`forward` returned them.

        Raises:
            ModelError: If the number of levels, the channels or the sizes do not fit.
        """
        check_levels(latents, self.scales, self.channels)
        pyramid = list(latents)
        for block in reversed(self.blocks):
            assert isinstance(block, CouplingBlock)
            pyramid = block.inverse(pyramid)
        statistics = zip(pyramid, self.feature_mean, self.feature_std, strict=True)
        return [level * std[:, None, None] + mean[:, None, None] for level, mean, std in statistics]

    def nll(self, pyramid: Pyramid) -> Tensor:
        """Return the exact negative log-likelihood of each image's features, ``(B,)`` in nats, constants included."""
        return self.negative_log_likelihood(*self(pyramid))

    @staticmethod
    def negative_log_likelihood(latents: Pyramid, log_det: Tensor) -> Tensor:
        """Return :meth:`nll` from the result of :meth:`forward`, ``(B,)`` in nats."""
        squares = torch.stack([z.square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0)
        return 0.5 * squares + 0.5 * math.log(2 * math.pi) * latent_count(latents) - log_det

    @staticmethod
    def per_dimension(nll: Tensor, pyramid: Pyramid) -> Tensor:
        """Divide ``nll`` by the number of values of one image, which makes it comparable between image sizes."""
        return nll / latent_count(pyramid)

    def set_standardization(self, mean: Tensor, std: Tensor) -> None:
        """Make the flow start with ``(y - mean) / std`` per scale and channel; ``log_det`` includes it.

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
        per_pixel = self.feature_std.log().sum(dim=1)
        log_dets = [-sums * (level.shape[2] * level.shape[3]) for sums, level in zip(per_pixel, pyramid, strict=True)]
        return torch.stack(log_dets).sum().expand(pyramid[0].shape[0])  # not len(): a graph's batch stays open


def draw_permutations(seed: int, scales: int, channels: int) -> Tensor:
    """Draw the permutations of a block as the authors' code does, so that their weights, which contain none, fit.

    Args:
        seed: Of NumPy's ``RandomState``.
        scales: Number of pyramid levels.
        channels: Channels of every level.

    Returns:
        ``(scales, channels)`` integers, a permutation of the channels in every row.
    """
    generator = np.random.RandomState(seed % 2**32)
    return torch.from_numpy(np.stack([generator.permutation(channels) for _ in range(scales)])).long()
