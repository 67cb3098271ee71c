"""Measure distances to the features of good images: what several kinds of detector have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.detector.model import Model, pooled
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.system.progress import track

SMOOTHING, REACH = 4.0, 16
"""Standard deviation and half width of the Gaussian over enlarged maps in pixels of the input, as the authors of PaDiM
and PatchCore use it."""

BLOCK = 512
"""Number of stored vectors compared at once: a table of the distances to all of them would not fit into memory."""


class DistanceModel(Model):
    """A model whose file holds its constructor's tensors; large ones are parameters, stored in half precision."""

    def _keep(self, *, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor.float(), requires_grad=False))
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.float() if tensor.is_floating_point() else tensor.long())


def smooth(maps: Tensor, pixels: int) -> Tensor:
    """Enlarge maps ``(B, h, w)`` bilinearly to ``(B, pixels, pixels)`` and convolve them with a Gaussian.

    Values at the border are repeated beyond it; the authors mirror them there.

    Reference:
        Codes of Defard et al. and Roth et al.: ``gaussian_filter(enlarged, sigma=4)``, cut off at four deviations.
    """
    weights = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / SMOOTHING) ** 2)
    kernel = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(maps.device)
    fine = F.interpolate(maps[:, None], size=(pixels, pixels), mode="bilinear", align_corners=False)
    padded = F.pad(fine, (REACH, REACH, REACH, REACH), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def at_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Sample maps ``(B, H, W)`` on a coarser grid ``(B, height, width)``."""
    return F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def positions_of(maps: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the features of all positions as vectors ``(B h w, D)``, and ``(B, h, w)``."""
    batch, channels, height, width = maps.shape
    return maps.permute(0, 2, 3, 1).reshape(-1, channels), (batch, height, width)


def nearest_of(vectors: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest row of ``memory`` for each vector.

    Returns:
        Distances ``(n,)``, exact for small ones too, and indices of the rows ``(n,)``.
    """
    starts = range(0, len(memory), BLOCK)
    least, row = _least(vectors, memory[:BLOCK])
    for start in starts[1:]:
        found, found_row = _least(vectors, memory[start : start + BLOCK])
        row = torch.where(found < least, found_row + start, row)
        least = torch.minimum(found, least)
    return (vectors - memory[row]).square().sum(dim=1).sqrt(), row


def _least(vectors: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest squared distances ``(n,)`` less each vector's own square, and the rows they belong to."""
    least, row = (memory.square().sum(dim=1) - 2 * vectors @ memory.T).min(dim=1)
    return least, row


def distances_between(vectors: Tensor, memory: Tensor) -> Tensor:
    """Compute all Euclidean distances ``(n, M)``."""
    squares = vectors.square().sum(dim=1, keepdim=True) + memory.square().sum(dim=1) - 2 * vectors @ memory.T
    return squares.clamp(min=0.0).sqrt()


def pooled_all(features: Features) -> Tensor:
    """Return the pooled features of all images, ``(N, D)``."""
    return torch.cat([pooled(features.batch(rows)) for rows in batches(len(features))])


def tracked_batches(count: int, label: str) -> Iterator[range]:
    """Return the batches of ``count`` images and show progress while they are used."""
    parts = batches(count)
    return track(parts, total=len(parts), label=label)


def batches(count: int, size: int = 32) -> list[range]:
    """Divide ``count`` images into ranges of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def restore_distance(
    make: Callable[..., DistanceModel], shapes: tuple[Shape, ...], state: Mapping[str, Tensor]
) -> DistanceModel:
    """Make a model from the tensors of its file and try it, so that a file of other features fails here.

    Args:
        make: The model's class.
        shapes: ``(C, h, w)`` of every feature map.
        state: The tensors by name.
    """
    model = make(**state)
    with torch.inference_mode():
        model([torch.zeros(1, *shape) for shape in shapes])
    return model
