"""Draw the texture line: indigo twill, seen from above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csflow.synthetic.noise import Array, blend, blot, curve_distance, smooth_noise, smooth_step, wandering_curve

INDIGO = np.array([0.21, 0.29, 0.41], dtype=np.float32)
ECRU = np.array([0.60, 0.63, 0.66], dtype=np.float32)
THREADS = 56  # entries of the weave tables; more than any picture shows


@dataclass
class Weave:
    """A weave: which thread is on top at each crossing. Rows are weft threads, columns are warp threads.

    Attributes:
        side: Height and width of the picture in pixels.
        pitch: Distance between two threads in pixels.
        warp_on_top: True where the warp thread is on top.
        warp_there: True where there is a warp thread.
        weft_there: True where there is a weft thread.
    """

    side: int
    pitch: float
    warp_on_top: NDArray[np.bool_]
    warp_there: NDArray[np.bool_]
    weft_there: NDArray[np.bool_]

    @classmethod
    def twill(cls, side: int, pitch: float) -> Weave:
        """Make a twill: two over, one under, shifted by one in each row."""
        row, column = np.mgrid[:THREADS, :THREADS]
        there = np.ones((THREADS, THREADS), dtype=bool)
        return cls(side, pitch, (row + column) % 3 != 0, there, there.copy())

    def crossing(self, rng: np.random.Generator) -> tuple[int, int]:
        """Choose the row and the column of a crossing well inside of the picture."""
        visible = int(self.side / self.pitch)
        row, column = rng.integers(round(visible * 0.15), round(visible * 0.85), 2)
        return int(row), int(column)


def draw_fabric(seed: int, defect: str | None, side: int) -> Array:
    """Draw one picture; with another defect, or none, the rest of the picture is the same.

    Args:
        seed: Determines the piece of fabric and the position of the defect.
        defect: A key of ``FABRIC_DEFECTS``, or None for a good piece.
        side: Height and width in pixels.

    Returns:
        RGB in 0..1, ``(side, side, 3)``.
    """
    rng, flaw_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    weave = Weave.twill(side, pitch=side / rng.uniform(25.0, 27.5))
    structure, surface = FABRIC_DEFECTS[defect] if defect else (None, None)
    if structure:
        structure(weave, flaw_rng)
    colour = _threads(weave, rng)
    if surface:
        colour = surface(colour, flaw_rng)
    return _light(colour, rng)


def _threads(weave: Weave, rng: np.random.Generator) -> Array:
    """Colour the threads under even light."""
    side = weave.side
    u, v = _thread_coordinates(weave, rng)
    column, row = np.floor(u).astype(int) % THREADS, np.floor(v).astype(int) % THREADS
    across_warp, across_weft = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    on_top = (weave.warp_on_top & weave.warp_there)[row, column] | ~weave.weft_there[row, column]
    gap = 1.0 - 0.3 * ~weave.weft_there[row, column] - 0.1 * ~weave.warp_there[row, column]

    fibre = side / 256
    warp = _yarn(INDIGO, across_warp, column, rng, smooth_noise(rng, side, side, (5 * fibre, 1.2 * fibre)), 0.06)
    weft = _yarn(ECRU, across_weft, row, rng, smooth_noise(rng, side, side, (1.2 * fibre, 5 * fibre)), 0.04)
    # A thread is darker where it goes under its neighbour at the end of a float.
    dive = np.where(on_top, 1.0 - 0.9 * across_weft**2, 1.0 - 1.2 * across_warp**2)[..., None]
    colour = np.where(on_top[..., None], warp, weft * 0.78) * dive
    woven: Array = colour * gap[..., None]
    return woven.astype(np.float32)


def _thread_coordinates(weave: Weave, rng: np.random.Generator) -> tuple[Array, Array]:
    """Map every pixel to thread coordinates: the cloth is turned a little, shifted and stretched unevenly."""
    side = weave.side
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle = rng.normal(0.0, 0.02)
    bend = [smooth_noise(rng, side, side, (side / 3, side / 3)) * 0.13 for _ in range(2)]
    u = (x * np.cos(angle) + y * np.sin(angle)) / weave.pitch + bend[0] + rng.uniform(0.0, 3.0)
    v = (y * np.cos(angle) - x * np.sin(angle)) / weave.pitch + bend[1] + rng.uniform(0.0, 3.0)
    return u, v


def _yarn(colour: Array, across: Array, thread: NDArray[np.int_], rng: np.random.Generator, fibre: Array,
          strength: float) -> Array:  # fmt: skip
    """Colour one system of threads, which are round and fibrous, each with its own shade."""
    shade = (1.0 + 0.07 * rng.standard_normal(THREADS))[thread]
    roundness = 1.0 - 1.7 * across**2
    brightness: Array = shade * roundness * (1.0 + strength * fibre)
    return brightness[..., None] * colour


def _light(colour: Array, rng: np.random.Generator) -> Array:
    side = len(colour)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    tilt = rng.normal(0.0, 0.06, 2)
    folds = smooth_noise(rng, side, side, (side / 2, side / 2)) * 0.035
    light = rng.uniform(1.12, 1.34) * (1.0 + tilt[0] * x + tilt[1] * y + folds - 0.05 * (x**2 + y**2))
    lit: Array = np.clip(colour * light[..., None] * rng.normal(1.0, 0.012, 3), 0.0, 1.0)
    return lit.astype(np.float32)


def _break_thread(weave: Weave, rng: np.random.Generator) -> None:
    row, column = weave.crossing(rng)
    length = int(rng.integers(4, 13))
    if rng.random() < 0.6:
        weave.warp_there[row : row + length, column] = False
    else:
        weave.weft_there[row, column : column + length] = False


def _misweave(weave: Weave, rng: np.random.Generator) -> None:
    row, column = weave.crossing(rng)
    rows, columns = rng.integers(2, 7, 2)
    area = weave.warp_on_top[row : row + rows, column : column + columns]
    area[...] = rng.random() < 0.5 if rng.random() < 0.5 else ~area


def _hole(colour: Array, rng: np.random.Generator) -> Array:
    side = len(colour)
    radius = side * rng.uniform(0.012, 0.045)
    inside = blot(rng, _position(rng, side), radius, side, side)
    frayed = blend(colour, ECRU, 0.55 * smooth_step(inside + radius * 0.5, side / 60))
    return blend(frayed, (0.03, 0.03, 0.04), smooth_step(inside, side / 120))


def _stain(colour: Array, rng: np.random.Generator) -> Array:
    side = len(colour)
    radius = side * rng.uniform(0.07, 0.17)
    inside = blot(rng, _position(rng, side), radius, side, side)
    cover = smooth_step(inside, radius * 0.35) * rng.uniform(0.35, 0.8)
    ring = smooth_step(inside, radius * 0.3) * smooth_step(radius * 0.35 - inside, radius * 0.3) * 0.2
    tint = np.asarray([(0.35, 0.24, 0.12), (0.12, 0.12, 0.13), (0.55, 0.50, 0.38)][rng.integers(3)])
    return blend(colour, colour * tint * 1.6, np.clip(cover + ring, 0.0, 1.0))


def _cut(colour: Array, rng: np.random.Generator) -> Array:
    side = len(colour)
    length, width = side * rng.uniform(0.10, 0.38), side * rng.uniform(0.003, 0.010)
    curve = wandering_curve(rng, _position(rng, side), rng.uniform(0.0, 2 * np.pi), length, 0.08)
    distance = curve_distance(curve, side, side)
    frayed = blend(colour, ECRU * 0.9, rng.uniform(0.2, 0.5) * smooth_step(2.2 * width - distance, 2 * width))
    return blend(frayed, (0.05, 0.05, 0.07), rng.uniform(0.6, 0.95) * smooth_step(width - distance, width))


def _position(rng: np.random.Generator, side: int) -> tuple[float, float]:
    x, y = rng.uniform(0.18, 0.82, 2) * side
    return float(x), float(y)


_WeaveChange = Callable[[Weave, np.random.Generator], None]
_SurfaceChange = Callable[[Array, np.random.Generator], Array]
FABRIC_DEFECTS: dict[str, tuple[_WeaveChange | None, _SurfaceChange | None]] = {
    "broken_thread": (_break_thread, None),
    "cut": (None, _cut),
    "hole": (None, _hole),
    "misweave": (_misweave, None),
    "stain": (None, _stain),
}
