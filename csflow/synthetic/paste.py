"""Paste synthetic defects on good images: evidence for a gate that has no real defects.

They represent no real defect. They only rank detectors: one that misses these misses real ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, gaussian_filter

from csflow.errors import DataError
from csflow.synthetic.noise import Array, blend, blot, curve_distance, smooth_noise, smooth_step, wandering_curve

MIN_SIDE = 16  # below this a defect of a few pixels would cover the image
_VISIBLE_LEVELS = 6  # least change of any channel, in levels of 255, counted as defective


def paste_defects(images: Sequence[Image.Image], seed: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """Paste one synthetic defect on each image.

    Kinds, sizes (about 3 % to 20 % of the shorter side) and contrasts vary, subtle ones included. Defects are placed
    where the image has structure, so that a part is hit more often than the plain tray below it.

    Args:
        images: Good images; read as RGB, of any size from 16 x 16.
        seed: The same images and seed give the same defects; each image's defect also depends on its index.

    Returns:
        The images with a defect in mode RGB, and masks of the same sizes in mode L: 255 where the image changed and in
        pinholes between such pixels.

    Raises:
        DataError: If an image is smaller than 16 pixels on a side.

    Reference:
        Li et al., CutPaste, CVPR 2021 (patches and scars from the image itself); Zavrtanik et al., DRAEM,
        ICCV 2021 (noise-shaped defects).
    """
    pairs = [_paste(image, np.random.default_rng([seed, index])) for index, image in enumerate(images)]
    return [image for image, _ in pairs], [mask for _, mask in pairs]


def _paste(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise DataError(f"Expected images of at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height}.")
    before = np.asarray(image.convert("RGB"))
    good: Array = before.astype(np.float32) / np.float32(255)
    kinds = list(PASTED.values())
    tries = (_levels(kinds[int(rng.integers(len(kinds)))](good, rng)) for _ in range(8))
    after = next((after for after in tries if _changed(before, after).sum() >= 4), None)
    after = _levels(_invert(good, rng)) if after is None else after
    mask = binary_closing(np.pad(_changed(before, after), 4), iterations=2)[4:-4, 4:-4]
    return Image.fromarray(after), Image.fromarray(mask.astype(np.uint8) * 255)


def _levels(image: Array) -> NDArray[np.uint8]:
    return np.round(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    change: NDArray[np.int16] = np.abs(after.astype(np.int16) - before.astype(np.int16)).max(axis=2)
    return change >= _VISIBLE_LEVELS


def _structured_position(image: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Choose a random pixel ``x, y``, more likely where the brightness changes nearby."""
    height, width, _ = image.shape
    gray = image.mean(axis=2)
    rows, columns = np.gradient(gaussian_filter(gray, 1.0))
    detail = gaussian_filter(np.hypot(rows, columns), min(height, width) / 24) + 1e-3
    index = int(np.searchsorted(np.cumsum(detail.ravel()), rng.random() * detail.sum()))
    y, x = divmod(min(index, height * width - 1), width)
    return float(x), float(y)


def _blot_cover(image: Array, rng: np.random.Generator) -> Array:
    """Return the soft cover ``(h, w)`` of an irregular blot."""
    height, width, _ = image.shape
    radius = max(2.0, min(height, width) * float(np.exp(rng.uniform(np.log(0.03), np.log(0.11)))))
    return smooth_step(blot(rng, _structured_position(image, rng), radius, height, width), max(1.5, radius * 0.3))


def _spot(image: Array, rng: np.random.Generator) -> Array:
    """Darken, brighten or tint a spot, like a stain, oil, a burn or a bare patch."""
    tint = rng.uniform(0.7, 1.3, 3)
    strength = float(rng.uniform(0.15, 0.6)) * (1 if rng.random() < 0.4 else -1)
    changed = np.clip(image * tint * (1.0 + strength) + 0.1 * strength, 0.0, 1.0)
    return blend(image, changed.astype(np.float32), _blot_cover(image, rng))


def _patch(image: Array, rng: np.random.Generator) -> Array:
    """Copy another part of the same image, turned by a right angle: wrong structure in the right colour."""
    height, width, _ = image.shape
    turned = np.rot90(image, 2) if height != width or rng.random() < 0.5 else np.rot90(image)
    moved = np.roll(turned, (int(rng.integers(height)), int(rng.integers(width))), axis=(0, 1))
    moved = np.clip(moved * rng.uniform(0.8, 1.2), 0.0, 1.0).astype(np.float32)
    return blend(image, moved, _blot_cover(image, rng))


def _scratch(image: Array, rng: np.random.Generator) -> Array:
    """Draw a fine dark or bright line."""
    height, width, _ = image.shape
    side = min(height, width)
    start, length = _structured_position(image, rng), side * rng.uniform(0.1, 0.35)
    heading, wobble = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.02, 0.3)
    curve = wandering_curve(rng, start, heading, length, wobble)
    thickness = max(0.8, side * float(rng.uniform(0.002, 0.008)))
    cover = smooth_step(thickness - curve_distance(curve, height, width), max(1.0, thickness))
    shade = float(rng.choice([0.05, 0.95]))
    return blend(image, (shade, shade, shade), (cover * rng.uniform(0.35, 0.9)).astype(np.float32))


def _grain(image: Array, rng: np.random.Generator) -> Array:
    """Roughen a spot with noise."""
    height, width, _ = image.shape
    cell = max(1.0, min(height, width) / float(rng.uniform(60, 120)))
    noise = smooth_noise(rng, height, width, (cell, cell))[..., None] * rng.uniform(0.06, 0.2)
    return blend(image, np.clip(image + noise, 0.0, 1.0).astype(np.float32), _blot_cover(image, rng))


def _invert(image: Array, rng: np.random.Generator) -> Array:
    """Invert a spot, which is visible on any image, a constant one included."""
    far = np.where(image.mean() > 0.5, image * 0.3, 0.7 + 0.3 * image)
    return blend(image, far.astype(np.float32), _blot_cover(image, rng))


Paste = Callable[[Array, np.random.Generator], Array]
PASTED: dict[str, Paste] = {"spot": _spot, "patch": _patch, "scratch": _scratch, "grain": _grain}
