"""Drawn features of correlated channels, and independent computations on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from csflow.detector.model import Model
from csflow.flow.pyramid import Pyramid

SIZES = ((6, 8), (5, 4), (5, 2))
"""Channels and side of every level."""


class Images:
    """Features of random images with correlated channels, from memory."""

    def __init__(self, count: int, seed: int = 0, offset: float = 20.0) -> None:
        draw = np.random.default_rng(seed)
        self.levels = []
        for channels, side in SIZES:
            mixing = np.random.default_rng(side).standard_normal((channels, channels))
            noise = draw.standard_normal((count, side, side, channels)) @ mixing + offset
            self.levels.append(torch.from_numpy(noise.transpose(0, 3, 1, 2).astype(np.float32)))

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        return [level[list(indices)] for level in self.levels]

    @property
    def all(self) -> Pyramid:
        return self.levels

    @property
    def pooled(self) -> np.ndarray:
        return np.concatenate([level.double().numpy().mean(axis=(2, 3)) for level in self.levels], axis=1)

    @property
    def joined(self) -> np.ndarray:
        """``(n, D, h, w)`` in float64, every level enlarged by an independent bilinear filter."""
        side = SIZES[0][1]
        return np.concatenate([enlarged(level.double().numpy(), side) for level in self.levels], axis=1)


def enlarged(maps: np.ndarray, side: int) -> np.ndarray:
    places = (np.arange(side) + 0.5) * maps.shape[2] / side - 0.5
    weights = np.clip(1 - np.abs(np.clip(places, 0, maps.shape[2] - 1)[:, None] - np.arange(maps.shape[2])), 0, None)
    return np.einsum("yi,xj,ncij->ncyx", weights, weights, maps)


GOOD, TEST = Images(40), Images(9, seed=1)


def judge(model: Model, images: Images = TEST) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        scores, maps = model(images.all)
    return scores.numpy(), maps.numpy()


def smoothed(maps: np.ndarray, pixels: int) -> np.ndarray:
    fine = enlarged(maps[:, None], pixels)[:, 0]
    return np.stack([gaussian_filter(one, 4.0, mode="nearest", truncate=4.0) for one in fine])


def sampled(maps: np.ndarray, side: int) -> np.ndarray:
    """Read between pixels at the middle of every place."""
    at = (np.arange(side) + 0.5) * maps.shape[1] / side - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    return np.stack([map_coordinates(one, grid, order=1, mode="nearest") for one in maps])
