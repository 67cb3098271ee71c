"""Make the deterministic noise and curves from which pictures are drawn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: tuple[float, float]) -> Array:
    """Make value noise of zero mean and unit deviation.

    Args:
        rng: Source of the values.
        height: Rows.
        width: Columns.
        cell: Rows and columns between two independent values; large cells are smooth, unequal ones streaky.

    Returns:
        ``(height, width)``.
    """
    rows, columns = (max(2, round(size / step) + 2) for size, step in zip((height, width), cell, strict=True))
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    field: Array = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    noise: Array = (field - field.mean()) / max(float(field.std()), 1e-6)
    return noise


def smooth_step(value: Array, width: float) -> Array:
    """Return 0 below ``-width / 2``, 1 above ``width / 2``, and a soft edge in between."""
    ramp: Array = np.clip(value / width + 0.5, 0.0, 1.0)
    return (ramp * ramp * (3.0 - 2.0 * ramp)).astype(np.float32)


def wandering_curve(
    rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, wobble: float
) -> Array:
    """Draw a random curve.

    Args:
        rng: Source of the turns.
        start: First point ``x, y`` in pixels.
        angle: First direction in radians.
        length: In pixels.
        wobble: Standard deviation of the change of direction at each step, in radians.

    Returns:
        Points ``(n, 2)`` as ``x, y``.
    """
    steps = max(3, round(length / 10))
    angles = angle + np.cumsum(rng.normal(0.0, wobble, steps))
    walk = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / steps)
    points: Array = np.concatenate([np.zeros((1, 2)), np.cumsum(walk, axis=0)]) + np.asarray(start)
    return points.astype(np.float32)


def curve_distance(points: Array, height: int, width: int) -> Array:
    """Return the distance of every pixel from the polyline through ``points``: ``(height, width)`` in pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    nearest = np.full((height, width), np.inf, dtype=np.float32)
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0.0, 1.0)
        np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy), out=nearest)
    return nearest


def blot(rng: np.random.Generator, centre: tuple[float, float], radius: float, height: int, width: int) -> Array:
    """Draw an irregular blot around ``centre`` ``x, y``.

    Returns:
        Signed distance of every pixel from its outline, positive inside: ``(height, width)`` in pixels.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    theta = np.arctan2(y, x)
    outline = np.ones_like(theta)
    for waves in range(1, 7):
        outline += rng.normal(0.0, 0.15 / np.sqrt(waves)) * np.cos(waves * theta + rng.uniform(0.0, 2 * np.pi))
    distance: Array = radius * np.maximum(outline, 0.3) - np.hypot(x, y)
    return distance.astype(np.float32)


def blend(below: Array, above: Array | tuple[float, ...], cover: Array) -> Array:
    """Blend ``above`` over ``below`` ``(h, w, 3)`` with the opacity ``cover`` ``(h, w)`` in 0..1."""
    weight = cover[..., None]
    mixed: Array = below * (1.0 - weight) + np.asarray(above, dtype=np.float32) * weight
    return mixed.astype(np.float32)
