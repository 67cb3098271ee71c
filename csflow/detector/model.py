"""Judge feature pyramids by what was learnt from good images: the interface of all models, and batches of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid

if TYPE_CHECKING:
    from csflow.detector.prediction import Float32Array

_IMAGES, _POSITIONS = 16, 150_000
"""Largest number of images, and of positions of their finest levels, that are scored in one batch."""


class Model(nn.Module, ABC):
    """A module from feature pyramid to score and map, written in operations that ONNX knows."""

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Score images and localise anomalies.

        Args:
            pyramid: Feature maps ``(B, C, h, w)``, finest first.

        Returns:
            Anomaly scores ``(B,)`` and anomaly maps ``(B, h, w)`` at the size of the finest level, both float32; higher
            is more anomalous.
        """

    def on(self, pyramid: Pyramid) -> Pyramid:
        """Move a pyramid to the model's device, in float32."""
        device = next(chain(self.parameters(), self.buffers())).device
        return [level.to(device, torch.float32) for level in pyramid]


def pooled(pyramid: Pyramid) -> Tensor:
    """Average every level over all positions, ``(B, sum of C)``: as the paper evaluated 1-NN and Mahalanobis."""
    return torch.cat([level.mean(dim=(2, 3)) for level in pyramid], dim=1)


def score_stored(model: Model, features: Features) -> tuple[Float32Array, Float32Array]:
    """Score stored features with a model, a few images at a time.

    Args:
        model: The model.
        features: Features of N images.

    Returns:
        Anomaly scores ``(N,)`` and anomaly maps ``(N, h, w)``, both float32; empty for no images.
    """
    if not len(features):
        return np.zeros(0, np.float32), np.zeros((0, 0, 0), np.float32)
    size = max(1, min(_IMAGES, _POSITIONS // features.batch([0])[0][0, 0].numel()))
    parts = [score_pyramid(model, features.batch(rows)) for rows in _chunks(len(features), size)]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([maps for _, maps in parts])


@torch.inference_mode()
def score_pyramid(model: Model, pyramid: Pyramid) -> tuple[Float32Array, Float32Array]:
    """Score one batch; return scores ``(B,)`` and maps ``(B, h, w)`` in memory of the CPU."""
    scores, maps = model(model.on(pyramid))
    return scores.float().cpu().numpy(), maps.float().cpu().numpy()


def _chunks(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
