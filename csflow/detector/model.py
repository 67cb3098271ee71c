"""What is learnt from good images: a module from feature pyramid to score and map, and its file.

A model's file holds its parameters in half precision and its buffers as they are, with integers narrowed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from csflow.detector.prediction import Floats
from csflow.errors import ModelError
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid

IMAGES, PLACES = 16, 150_000
"""Most images, and most places of their finest levels, that stored features are scored by at once."""


class Model(nn.Module, ABC):
    """Judges feature pyramids. Written in operations that ONNX knows."""

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Score images and localise anomalies.

        Args:
            pyramid: Feature maps ``(B, C, h, w)``, finest first.

        Returns:
            Scores ``(B,)`` and maps ``(B, h, w)`` at the size of the finest level, both float32, higher is more
            anomalous.
        """

    def on(self, pyramid: Pyramid) -> Pyramid:
        """A pyramid where the model lies, in float32."""
        place = next(chain(self.parameters(), self.buffers())).device
        return [level.to(place, torch.float32) for level in pyramid]


def pooled(pyramid: Pyramid) -> Tensor:
    """Mean over all places of every level, ``(B, sum of C)``: as the paper evaluated 1-NN and Mahalanobis."""
    return torch.cat([level.mean(dim=(2, 3)) for level in pyramid], dim=1)


def turns_pooled(pyramid: Pyramid, rotations: int) -> list[Tensor]:
    """Pooled vectors of every turn as maps of one place ``(B, C, 1, 1)``."""
    count = len(pyramid) // rotations
    return [pooled(pyramid[turn * count : (turn + 1) * count])[:, :, None, None] for turn in range(rotations)]


def score_stored(model: Model, features: Features) -> tuple[Floats, Floats]:
    """Score stored features with a model.

    Returns:
        Anomaly scores ``(N,)`` and anomaly maps ``(N, h, w)``, both float32; empty for no images.
    """
    if not len(features):
        return np.zeros(0, np.float32), np.zeros((0, 0, 0), np.float32)
    size = max(1, min(IMAGES, PLACES // features.batch([0])[0][0, 0].numel()))
    parts = [score_pyramid(model, features.batch(rows)) for rows in _chunks(len(features), size)]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([maps for _, maps in parts])


@torch.inference_mode()
def score_pyramid(model: Model, pyramid: Pyramid) -> tuple[Floats, Floats]:
    """Scores ``(B,)`` and maps ``(B, h, w)`` of one batch, in memory of the CPU."""
    scores, maps = model(model.on(pyramid))
    return scores.float().cpu().numpy(), maps.float().cpu().numpy()


def round_to_stored(model: nn.Module) -> None:
    """Give a model, in place, the values its file will hold: to be done before anything is calibrated by it.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    model.load_state_dict(_stored(model))


def save_model(model: nn.Module, path: Path) -> None:
    """Write the weights of a model in half precision; what is read again is what :func:`round_to_stored` leaves.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    save_file(_stored(model), path)
    # safetensors lets only its owner read what it wrote; who serves the detector is another user.
    path.chmod(0o644)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The state as it is stored: weights in half precision, integers narrow; the standardisation in full."""
    weights = dict(model.named_parameters())
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    stored = {name: _narrow(tensor, weight=name in weights).contiguous() for name, tensor in state.items()}
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of the model, {broken[0]} the first, are not finite in half precision. "
            "If it was trained, it diverged: lower training.learning_rate; for PaDiM raise padim.regularization."
        )
    return stored


def _narrow(tensor: Tensor, *, weight: bool) -> Tensor:
    if weight:
        return tensor.half()
    if not tensor.is_floating_point() and int(tensor.max()) <= torch.iinfo(torch.int16).max:
        return tensor.to(torch.int16)
    return tensor


def _chunks(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
