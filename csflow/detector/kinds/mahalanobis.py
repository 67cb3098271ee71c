"""Mahalanobis: the distance of the pooled features to the distribution of good images.

Reference:
    Rippel et al., "Modeling the distribution of normal data in pre-trained deep features", ICPR 2020.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from csflow.config import LineConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.kinds.distances import DistanceModel, pooled_all, positions_of, restore_distance
from csflow.detector.model import Model, pooled
from csflow.errors import DataError
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales


class Mahalanobis(DistanceModel):
    r"""Mahalanobis distance of the pooled features, the covariance shrunk as Ledoit and Wolf say.

    .. math:: s = \lVert W (y - \mu) \rVert, \quad W^\top W = \Sigma^{-1}

    The map is the same distance of every position's features; it is only a hint, because the distribution is that of
    averages.

    Args:
        mean: Mean of the pooled features, ``(D,)``.
        whitening: ``W``, ``(D, D)``.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self._keep(parameters={}, buffers={"mean": mean, "whitening": whitening})

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        vectors, shape = positions_of(join_scales(pyramid))
        return self._distance(pooled(pyramid)), self._distance(vectors).reshape(shape)

    def _distance(self, vectors: Tensor) -> Tensor:
        return ((vectors - self.mean) @ self.whitening.T).square().sum(dim=1).sqrt()

    @classmethod
    def fit(cls, features: Features) -> Mahalanobis:
        """Estimate mean and covariance.

        Raises:
            DataError: If there are too few different images.
        """
        from sklearn.covariance import LedoitWolf

        vectors = pooled_all(features).double().numpy()
        if len(vectors) < 2:
            raise DataError(f"A covariance needs at least 2 good images, got {len(vectors)}. Add good images.")
        estimate = LedoitWolf().fit(vectors)
        try:
            whitening = np.linalg.inv(np.linalg.cholesky(estimate.covariance_))
        except np.linalg.LinAlgError as error:
            different = len(np.unique(vectors, axis=0))
            raise DataError(
                f"The covariance of {len(vectors)} good images, {different} of them different, has no inverse. "
                "Add good images that are not copies, or use detector nearest-neighbour."
            ) from error
        return cls(torch.from_numpy(estimate.location_), torch.from_numpy(whitening))


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    return Mahalanobis.fit(features)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    return restore_distance(Mahalanobis, shapes, state)
