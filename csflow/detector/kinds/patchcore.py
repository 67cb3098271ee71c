"""PatchCore: the distance of every patch to the nearest of a thinned-out set of good patches.

Reference:
    Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csflow.config import LineConfig, PatchcoreConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.kinds.distances import (
    DistanceModel,
    at_size,
    distances_between,
    nearest_of,
    positions_of,
    restore_distance,
    smooth,
    tracked_batches,
)
from csflow.detector.model import Model
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales
from csflow.system.progress import track

CANDIDATES = 200_000
"""Largest number of patches to thin out, drawn at random if there are more; every patch kept is compared with all."""

PROJECTED = 128
"""Dimensions in which patches are compared while they are thinned out (the authors' default)."""


class Patchcore(DistanceModel):
    r"""Distance of every patch to the nearest of a thinned-out set of good patches.

    A patch is the mean over a position and its eight neighbours. With ``p`` the patch farthest from its nearest kept
    patch ``m`` and ``N`` the ``neighbours`` kept patches nearest to ``m``, the score is

    .. math:: \left(1 - \frac{e^{\lVert p - m \rVert}}{\sum_{n \in N} e^{\lVert p - n \rVert}}\right)
              \lVert p - m \rVert

    which is larger where good patches are rare. The authors' code leaves this weight out (``neighbours: 1``).

    Args:
        memory: Patches kept less ``centre``, ``(M, D)``.
        centre: Mean of the good patches, ``(D,)``.
        pixels: Side of the input in pixels, a scalar.
        neighbours: Number of patches that weigh the score, a scalar; 1 for no weight.
    """

    memory: Tensor
    centre: Tensor
    pixels: Tensor
    neighbours: Tensor

    def __init__(self, memory: Tensor, centre: Tensor, pixels: Tensor, neighbours: Tensor) -> None:
        super().__init__()
        self._keep(
            parameters={"memory": memory}, buffers={"centre": centre, "pixels": pixels, "neighbours": neighbours}
        )
        self._pixels, self._weighing = int(pixels), int(neighbours)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        patches, shape = positions_of(_patches(pyramid))
        patches = patches - self.centre
        distances, nearest = nearest_of(patches, self.memory)
        by_image = distances.reshape(shape[0], -1)
        score, index = by_image.max(dim=1)
        if self._weighing > 1:
            farthest = torch.arange(shape[0], device=index.device) * by_image.shape[1] + index
            score = score * self._weight(patches[farthest], self.memory[nearest[farthest]])
        return score, at_size(smooth(distances.reshape(shape), self._pixels), *shape[1:])

    def _weight(self, patches: Tensor, nearest: Tensor) -> Tensor:
        """Compute the weight ``(B,)`` of patches ``(B, D)`` from the neighbourhood of their nearest kept patches."""
        around = distances_between(nearest, self.memory).topk(self._weighing, dim=1, largest=False).indices
        reach = (patches[:, None] - self.memory[around]).square().sum(dim=2).sqrt()
        return 1 - torch.softmax(reach, dim=1)[:, 0]

    @classmethod
    def fit(cls, features: Features, config: PatchcoreConfig, *, pixels: int, seed: int) -> Patchcore:
        """Choose the patches to keep.

        Args:
            features: Features of the good images.
            config: Number of patches to keep.
            pixels: Side of the input in pixels.
            seed: Seed that draws candidates, projection and first patch.
        """
        rng = np.random.default_rng(seed)
        sample = _patches(features.batch([0]))
        positions = sample[0, 0].numel()
        each = max(1, CANDIDATES // len(features))  # of every image alike
        parts = []
        for rows in tracked_batches(len(features), "gather patches"):
            for patches in _patches(features.batch(rows)).flatten(2).transpose(1, 2):
                chosen = rng.permutation(positions)[:each] if each < positions else np.arange(positions)
                parts.append(patches[torch.from_numpy(chosen)])
        candidates = torch.cat(parts)
        centre = candidates.mean(dim=0)
        candidates -= centre
        keep = max(1, min(config.largest, round(config.coreset * len(features) * positions), len(candidates)))
        memory = candidates[farthest_first(candidates, keep, rng)]
        neighbours = min(config.neighbours, keep)
        return cls(memory, centre, torch.tensor(pixels), torch.tensor(neighbours))


def farthest_first(points: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    """Choose ``keep`` points, each the farthest from those before: the greedy coreset of PatchCore.

    Distances are those of a random projection to `PROJECTED` dimensions, if the points have more.

    Args:
        points: ``(n, D)``.
        keep: Number of points to choose, at most ``n``.
        rng: Draws projection and first point.

    Returns:
        Indices of the chosen points, ``(keep,)``.

    Reference:
        Roth et al., CVPR 2022, Algorithm 1; Sener and Savarese, ICLR 2018.
    """
    if points.shape[1] > PROJECTED:
        directions = rng.standard_normal((points.shape[1], PROJECTED)) / np.sqrt(PROJECTED)
        points = points @ torch.from_numpy(directions.astype(np.float32))
    squares = points.square().sum(dim=1)
    chosen = [int(rng.integers(len(points)))]
    gaps = torch.full((len(points),), torch.inf)
    for _ in track(range(keep - 1), total=keep - 1, label="thin out patches"):
        last = chosen[-1]
        gaps = torch.minimum(gaps, (squares + squares[last] - 2 * (points @ points[last])).clamp(min=0.0))
        gaps[last] = -1.0
        chosen.append(int(gaps.argmax()))
    return torch.tensor(chosen)


def _patches(pyramid: Pyramid) -> Tensor:
    """Average every position with its neighbours and join the levels, ``(B, D, h, w)``."""
    return join_scales([F.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False) for level in pyramid])


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    return Patchcore.fit(features, line.patchcore, pixels=line.features.image_size, seed=line.training.seed)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    return restore_distance(Patchcore, shapes, state)
