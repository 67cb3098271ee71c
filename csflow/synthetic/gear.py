"""Draw the object line: a turned steel gear on a tray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from csflow.synthetic.noise import Array, blend, blot, curve_distance, smooth_noise, smooth_step, wandering_curve

TEETH, HOLES = 18, 6
STEEL = np.array([0.70, 0.71, 0.72], dtype=np.float32)
TRAY = np.array([0.16, 0.29, 0.31], dtype=np.float32)
# Radii as shares of the tip radius.
ROOT, WEB_OUTER, WEB_INNER, HOLE_RING, HOLE, BORE = 0.84, 0.73, 0.40, 0.565, 0.105, 0.20


@dataclass
class Gear:
    """A gear: its position on the tray, and the sizes of its teeth and holes (1 is as designed).

    Attributes:
        side: Height and width of the picture in pixels.
        centre: ``x, y`` in pixels.
        radius: Tip radius in pixels.
        rotation: In radians.
        tooth_height: Of each tooth.
        hole_size: Of each hole.
        missing: Signed distances of missing material, positive inside, ``(side, side)`` in pixels each.
    """

    side: int
    centre: tuple[float, float]
    radius: float
    rotation: float
    tooth_height: Array = field(default_factory=lambda: np.ones(TEETH, dtype=np.float32))
    hole_size: Array = field(default_factory=lambda: np.ones(HOLES, dtype=np.float32))
    missing: list[Array] = field(default_factory=list)

    @classmethod
    def lying(cls, rng: np.random.Generator, side: int) -> Gear:
        """Make a good gear at a slightly random position, as if placed by hand."""
        x, y = side * (0.5 + rng.uniform(-0.012, 0.012, 2))
        radius = side * rng.uniform(0.42, 0.43)
        return cls(side, (float(x), float(y)), float(radius), float(rng.normal(0.0, 0.02)))

    def at(self, radius: float, angle: float) -> tuple[float, float]:
        """Return the pixel ``x, y`` at a share of the tip radius and an angle from the first tooth, in radians."""
        turned = angle + self.rotation
        return (
            self.centre[0] + radius * self.radius * float(np.cos(turned)),
            self.centre[1] + radius * self.radius * float(np.sin(turned)),
        )


def draw_gear(seed: int, defect: str | None, side: int) -> Array:
    """Draw one picture; with another defect, or none, the rest of the picture is the same.

    Args:
        seed: Determines the gear, its position and the position of the defect.
        defect: A key of ``GEAR_DEFECTS``, or None for a good gear.
        side: Height and width in pixels.

    Returns:
        RGB in 0..1, ``(side, side, 3)``.
    """
    rng, flaw_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    gear = Gear.lying(rng, side)
    structure, surface = GEAR_DEFECTS[defect] if defect else (None, None)
    if structure:
        structure(gear, flaw_rng)
    solid, height = _shape(gear)
    colour = _shaded(gear, solid, height, rng)
    if surface:
        colour = surface(colour, gear, flaw_rng)
    return _light(colour, rng)


def _shape(gear: Gear) -> tuple[Array, Array]:
    """Return the cover of steel (0..1) and the height of its surface, both ``(side, side)``."""
    side, edge = gear.side, gear.side / 256 * 1.2
    y, x = np.mgrid[:side, :side].astype(np.float32)
    r = np.hypot(x - gear.centre[0], y - gear.centre[1])
    turn = (np.arctan2(y - gear.centre[1], x - gear.centre[0]) - gear.rotation) * TEETH / (2 * np.pi)
    tooth = smooth_step(0.27 - np.abs(turn - np.round(turn)), 0.26)
    tooth = tooth * gear.tooth_height[np.round(turn).astype(int) % TEETH]
    outline = gear.radius * (ROOT + (1.0 - ROOT) * tooth) - r

    inside = np.minimum(outline, r - gear.radius * BORE)
    for k, size in enumerate(gear.hole_size):
        hx, hy = gear.at(HOLE_RING, 2 * np.pi * k / HOLES)
        inside = np.minimum(inside, np.hypot(x - hx, y - hy) - gear.radius * HOLE * size if size else inside)
    for cut in gear.missing:
        inside = np.minimum(inside, -cut)
    solid = smooth_step(inside, edge)
    bevel = smooth_step(inside - side / 110, side / 55)
    web = smooth_step(gear.radius * WEB_OUTER - r, side / 64) * smooth_step(r - gear.radius * WEB_INNER, side / 64)
    return solid, bevel - 0.75 * web


def _shaded(gear: Gear, solid: Array, height: Array, rng: np.random.Generator) -> Array:
    """Shade gear and tray under a lamp from the upper left."""
    side = gear.side
    lamp = rng.normal(-2.3, 0.03)
    slope_y, slope_x = np.gradient(gaussian_filter(height, side / 400))
    slope = (slope_x * np.cos(lamp) + slope_y * np.sin(lamp)) * side / 256
    steel = STEEL * (_turned_face(gear, lamp, rng) - 0.10 * (height < 0.6) + 1.5 * -slope)[..., None]
    reach = side * rng.uniform(0.020, 0.024)
    shadow = gaussian_filter(shift(solid, (-np.sin(lamp) * reach, -np.cos(lamp) * reach), order=1), side / 70)
    grain = smooth_noise(rng, side, side, (side / 200, side / 200)) * 0.03
    tray = TRAY * ((1.0 + grain) * (1.0 - 0.62 * shadow))[..., None]
    return blend(tray.astype(np.float32), steel.astype(np.float32), solid)


def _turned_face(gear: Gear, lamp: float, rng: np.random.Generator) -> Array:
    """Shade a face with turning grooves: rings, and the double fan that a lamp makes on them."""
    side = gear.side
    y, x = np.mgrid[:side, :side].astype(np.float32)
    r = np.hypot(x - gear.centre[0], y - gear.centre[1])
    theta = np.arctan2(y - gear.centre[1], x - gear.centre[0])
    grooves = np.interp(r, np.arange(0, side, side / 256), rng.standard_normal(256)).astype(np.float32)
    fans = np.abs(np.cos(theta - lamp)) ** rng.uniform(6.5, 7.5) + 0.5 * np.abs(np.cos(theta - lamp - 1.9)) ** 14
    brightness: Array = 0.72 + 0.02 * grooves + 0.38 * fans
    return brightness


def _light(colour: Array, rng: np.random.Generator) -> Array:
    side = len(colour)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    tilt = rng.normal(0.0, 0.03, 2)
    light = rng.normal(1.05, 0.035) * (1.0 + tilt[0] * x + tilt[1] * y - 0.07 * (x**2 + y**2))
    lit: Array = np.clip(colour * light[..., None] * rng.normal(1.0, 0.004, 3), 0.0, 1.0)
    return lit.astype(np.float32)


def _chip(gear: Gear, rng: np.random.Generator) -> None:
    """Break a piece out of the tip of a tooth."""
    tip = gear.at(rng.uniform(0.95, 1.0), 2 * np.pi * (rng.integers(TEETH) + rng.uniform(-0.15, 0.15)) / TEETH)
    gear.missing.append(blot(rng, tip, gear.side * rng.uniform(0.034, 0.06), gear.side, gear.side))


def _missing_tooth(gear: Gear, rng: np.random.Generator) -> None:
    first, count = int(rng.integers(TEETH)), int(rng.integers(1, 3))
    gear.tooth_height[(first + np.arange(count)) % TEETH] = rng.uniform(0.0, 0.3)


def _bad_hole(gear: Gear, rng: np.random.Generator) -> None:
    """Leave a hole undrilled, or drill it with the wrong drill."""
    gear.hole_size[rng.integers(HOLES)] = 0.0 if rng.random() < 0.5 else rng.uniform(0.4, 0.6)


def _crack(colour: Array, gear: Gear, rng: np.random.Generator) -> Array:
    """Draw a fine dark line that starts at a hole."""
    angle = 2 * np.pi * rng.integers(HOLES) / HOLES
    outward = rng.random() < 0.4
    start = gear.at(HOLE_RING + (HOLE if outward else -HOLE), angle)
    heading = angle + gear.rotation + (0.0 if outward else np.pi) + rng.normal(0.0, 0.5)
    curve = wandering_curve(rng, start, heading, gear.radius * rng.uniform(0.28, 0.5), 0.22)
    distance = curve_distance(curve, gear.side, gear.side)
    width = gear.side * rng.uniform(0.006, 0.011)
    line = smooth_step(width - distance, width * 1.5)
    solid, _ = _shape(gear)
    return blend(colour, colour * 0.18, rng.uniform(0.7, 1.0) * line * solid)


def _contamination(colour: Array, gear: Gear, rng: np.random.Generator) -> Array:
    """Put a drop of oil or a curl of swarf on the face."""
    side = gear.side
    spot = gear.at(rng.uniform(0.35, 0.8), rng.uniform(0.0, 2 * np.pi))
    if rng.random() < 0.55:
        radius = side * rng.uniform(0.032, 0.07)
        inside = blot(rng, spot, radius, side, side)
        oil = blend(colour, colour * (0.52, 0.36, 0.18), rng.uniform(0.5, 0.9) * smooth_step(inside, radius * 0.4))
        x, y = spot[0] - radius * 0.3, spot[1] - radius * 0.3
        return blend(oil, (0.95, 0.93, 0.88), 0.6 * smooth_step(blot(rng, (x, y), radius * 0.2, side, side), radius))
    curve = wandering_curve(rng, spot, rng.uniform(0.0, 2 * np.pi), side * rng.uniform(0.12, 0.25), 0.5)
    shadow = smooth_step(side / 128 - curve_distance(curve + side / 170, side, side), side / 128)
    curl = smooth_step(side / 200 - curve_distance(curve, side, side), side / 200)
    return blend(blend(colour, colour * 0.45, shadow), (0.80, 0.66, 0.42), curl)


def _scratch(colour: Array, gear: Gear, rng: np.random.Generator) -> Array:
    start = gear.at(rng.uniform(0.5, 0.8), towards := rng.uniform(0.0, 2 * np.pi))
    heading, length = towards + gear.rotation + np.pi + rng.normal(0.0, 0.7), gear.radius * rng.uniform(0.5, 1.1)
    solid, _ = _shape(gear)
    for _ in range(int(rng.integers(2, 5))):
        x, y = start + rng.normal(0.0, gear.radius * 0.05, 2)
        curve = wandering_curve(rng, (x, y), heading + rng.normal(0.0, 0.02), length * rng.uniform(0.7, 1.0), 0.03)
        line = smooth_step(gear.side / 240 - curve_distance(curve, gear.side, gear.side), gear.side / 170)
        colour = blend(colour, (0.96, 0.96, 0.94), rng.uniform(0.6, 0.95) * line * solid)
    return colour


_ShapeChange = Callable[[Gear, np.random.Generator], None]
_SurfaceChange = Callable[[Array, Gear, np.random.Generator], Array]
GEAR_DEFECTS: dict[str, tuple[_ShapeChange | None, _SurfaceChange | None]] = {
    "bad_hole": (_bad_hole, None),
    "chip": (_chip, None),
    "contamination": (None, _contamination),
    "crack": (None, _crack),
    "missing_tooth": (_missing_tooth, None),
    "scratch": (None, _scratch),
}
