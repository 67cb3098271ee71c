"""PaDiM: a normal distribution of the features at every position.

Reference:
    Defard et al., "PaDiM: a patch distribution modeling framework", ICPR 2020 workshops.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from csflow.config import LineConfig, PadimConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.kinds.distances import DistanceModel, at_size, batches, restore_distance, smooth, tracked_batches
from csflow.detector.model import Model
from csflow.errors import DataError
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales


class Padim(DistanceModel):
    r"""Mahalanobis distance at every position to the good images' features at the same position.

    Parts must be at the same position on every image. The map is enlarged to the input and smoothed there: its maximum
    is the score, and it is returned at the size of the finest level.

    Args:
        channels: Channels kept of the joined levels, ``(d,)``.
        mean: Mean at every position, ``(h w, d, 1)``.
        whitening: ``W`` at every position, ``(h w, d, d)``; ``W^T W`` is the inverse covariance.
        pixels: Side of the input in pixels, a scalar.
    """

    channels: Tensor
    mean: Tensor
    whitening: Tensor
    pixels: Tensor

    def __init__(self, channels: Tensor, mean: Tensor, whitening: Tensor, pixels: Tensor) -> None:
        super().__init__()
        self._keep(parameters={"whitening": whitening}, buffers={"channels": channels, "mean": mean, "pixels": pixels})
        self._pixels = int(pixels)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        maps = join_scales(pyramid)[:, self.channels.long()]
        batch, _, height, width = maps.shape
        centred = maps.flatten(2).permute(2, 1, 0) - self.mean  # (h w, d, B)
        distances = (self.whitening @ centred).square().sum(dim=1).sqrt()
        fine = smooth(distances.T.reshape(batch, height, width), self._pixels)
        return fine.flatten(1).amax(dim=1), at_size(fine, height, width)

    @classmethod
    def fit(cls, features: Features, config: PadimConfig, *, pixels: int, seed: int) -> Padim:
        """Estimate mean and covariance at every position.

        Args:
            features: Features of the good images.
            config: Number of channels and regularisation.
            pixels: Side of the input in pixels.
            seed: Seed that draws the channels.

        Raises:
            DataError: If there are fewer than two images.
        """
        count = len(features)
        if count < 2:
            raise DataError(f"A covariance needs at least 2 good images, got {count}. Add good images.")
        total = join_scales(features.batch([0])).shape[1]
        kept = np.sort(np.random.default_rng(seed).permutation(total)[: config.dimensions])
        channels = torch.from_numpy(kept)

        def vectors(rows: range) -> Tensor:
            return join_scales(features.batch(rows))[:, channels].flatten(2).permute(2, 0, 1).double()  # (h w, B, d)

        mean = torch.stack([vectors(rows).sum(dim=1) for rows in batches(count)]).sum(dim=0) / count
        scatter = torch.zeros(len(mean), len(channels), len(channels), dtype=torch.float64)
        for rows in tracked_batches(count, "estimate covariances"):
            centred = vectors(rows) - mean[:, None]
            scatter += centred.transpose(1, 2) @ centred
        covariance = scatter / (count - 1) + config.regularization * torch.eye(len(channels), dtype=torch.float64)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        return cls(channels, mean[:, :, None], whitening, torch.tensor(pixels))


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    return Padim.fit(features, line.padim, pixels=line.features.image_size, seed=line.training.seed)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    return restore_distance(Padim, shapes, state)
