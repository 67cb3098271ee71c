"""1-NN: the distance of the pooled features to those of the nearest good image.

Reference:
    Nazare et al., "Are pre-trained CNNs good feature extractors for anomaly detection in surveillance videos?", 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from csflow.config import LineConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.kinds.distances import DistanceModel, nearest_of, pooled_all, positions_of, restore_distance
from csflow.detector.model import Model, pooled
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales


class NearestNeighbour(DistanceModel):
    """Distance of the pooled features to those of the nearest good image.

    The map is the same distance of every position's features; it is only a hint, because the neighbours are averages.

    Args:
        memory: Pooled features of the good images less ``centre``, ``(n, D)``.
        centre: Mean of the pooled features, ``(D,)``: distances between small numbers lose fewer digits.
    """

    memory: Tensor
    centre: Tensor

    def __init__(self, memory: Tensor, centre: Tensor) -> None:
        super().__init__()
        self._keep(parameters={"memory": memory}, buffers={"centre": centre})

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        scores, _ = nearest_of(pooled(pyramid) - self.centre, self.memory)
        vectors, shape = positions_of(join_scales(pyramid))
        distances, _ = nearest_of(vectors - self.centre, self.memory)
        return scores, distances.reshape(shape)

    @classmethod
    def fit(cls, features: Features) -> NearestNeighbour:
        """Remember the pooled features of the good images."""
        vectors = pooled_all(features)
        centre = vectors.mean(dim=0)
        return cls(vectors - centre, centre)


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    return NearestNeighbour.fit(features)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    return restore_distance(NearestNeighbour, shapes, state)
