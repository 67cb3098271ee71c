"""Read masks, and find those that do not say clearly which pixels are defective.

A pixel is defective if it is not 0 (not black). What a lossy format, smoothing or an inverted drawing makes of a mask
would mark good pixels, and every pixel metric would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csflow.data.images import opened_image, upright
from csflow.errors import DataError

_FAINT = 4
"""Values below this part of the largest are faint: a drawn mask has none of them, a compressed or smoothed one has."""
_BRIGHT = 128
"""Largest value from which faint ones are looked for; masks whose values count types of defects stay below it."""


@dataclass(frozen=True)
class MeasuredMask:
    """What a mask marks.

    Attributes:
        width: Columns after EXIF rotation.
        height: Rows after EXIF rotation.
        share: Share of its pixels that are marked as defective, 0 to 1.
        unclear: Why it does not say clearly which pixels are defective; '' if it does.
    """

    width: int
    height: int
    share: float
    unclear: str


def read_mask(file: Path) -> NDArray[np.bool_]:
    """Read the ground truth ``(H, W)`` of an image; True = defective.

    Raises:
        DataError: If the file is missing or not an image.
    """
    marked: NDArray[np.bool_] = _read(file)[0] != 0
    return marked


def measure_mask(file: Path) -> MeasuredMask:
    """Measure a mask.

    Raises:
        DataError: If the file is missing or not an image.
    """
    values, kind = _read(file)
    height, width = values.shape
    return MeasuredMask(width, height, float((values != 0).mean()), _unclear(values, kind))


def _read(file: Path) -> tuple[NDArray[Any], str]:
    """Read the values of a mask ``(H, W)``, of colours the largest channel, and the name of its format."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror or error}.") from error
    with opened_image(content, str(file)) as image:
        kind = str(image.format)
        image.load()
        turned = upright(image)
        if turned.mode in ("1", "L", "F") or turned.mode.startswith("I"):
            return np.asarray(turned), kind
        if turned.has_transparency_data:
            pixels = np.asarray(turned.convert("RGBA"))
            colours, alpha = pixels[..., :3].max(axis=2), pixels[..., 3]
            return (colours if alpha.min() == alpha.max() else np.where(alpha > 0, colours, 0)), kind
        return np.asarray(turned.convert("RGB")).max(axis=2), kind


def _unclear(values: NDArray[Any], kind: str) -> str:
    if kind in ("JPEG", "MPO"):
        return "is stored as JPEG, which changes pixels near a border"
    if not values.any():
        return "marks nothing"
    smallest, largest = values.min(), values.max()
    if values.all() and smallest != largest:
        return f"marks every pixel, because its background is {smallest:g} and not 0"
    faint = values[(values != 0) & (values < largest / _FAINT)]
    if largest >= _BRIGHT and faint.size:
        return (
            f"has {faint.size} faint pixels ({faint.min():g} to {faint.max():g} of {largest:g}), as a lossy format or "
            "smoothing leaves them"
        )
    return ""
