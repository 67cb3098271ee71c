"""A kind of detector of this test's own: the distance of every position to the median of good images there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from csflow.config import LineConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.model import Model
from csflow.features.entries import Shape
from csflow.flow.pyramid import Pyramid


class MedianDistance(Model):
    """Mean absolute distance of the finest level to the median ``(C, h, w)`` of the good images."""

    def __init__(self, median: Tensor) -> None:
        super().__init__()
        self.median = nn.Parameter(median.float(), requires_grad=False)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        maps = (pyramid[0] - self.median).abs().mean(dim=1)
        return maps.flatten(1).amax(dim=1), maps


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    return MedianDistance(features.batch(range(len(features)))[0].median(dim=0).values)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    model = MedianDistance(torch.zeros(shapes[0]))
    model.load_state_dict(dict(state))
    return model
