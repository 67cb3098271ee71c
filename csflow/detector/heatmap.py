"""Draw an anomaly map as a heat-map or as an overlay on its image, in colours that are fixed at calibration.

Nothing here looks at other images of the same call, and no colour scale is ever stretched to a single image: a good
part keeps looking good.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from csflow.detector.boxes import Box, FloatArray, boxes_in_image, checked_map
from csflow.errors import DataError

Bytes: TypeAlias = npt.NDArray[np.uint8]

# Eleven anchors of matplotlib's "inferno" (CC0): lightness rises steadily, so it survives black-and-white
# print and every common colour blindness. Interpolated linearly it is within 9/255 of the original.
_INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip

MARK_POSITION = 0.5
"""Position of the region threshold on the colour scale, 0 the bottom, 1 the top.

Below it are black and violet, which are never painted on a part: they would not be seen on a dark one. The upper half,
red to yellow, is left to tell a faint defect from a strong one.
"""

_MARK_IN_RANGE = 0.25
"""Position of the mark in a stored range without region threshold, on a logarithmic scale."""

_OPACITY = (0.25, 0.75)
"""Opacity of the paint at the region threshold and at the top of the scale."""


class ColourScale(NamedTuple):
    """Map values that fix the colours of a detector's maps, the same for all images.

    Attributes:
        bottom: Value of the darkest colour; lower ones have it, too.
        mark: Value at :data:`MARK_POSITION`: the region threshold, if there is one.
        top: Value of the lightest colour; higher ones have it, too.
    """

    bottom: float
    mark: float
    top: float

    @classmethod
    def of(cls, map_range: tuple[float, float], region_threshold: float | None) -> ColourScale:
        """Complete the range of a calibration, also of one that csflow 0.5 or older wrote.

        Raises:
            DataError: If the range is empty or not positive.
        """
        low, high = map_range
        if not (np.isfinite(low) and np.isfinite(high) and 0.0 < low < high):
            raise DataError(
                f"The colour scale must run from low to high, got {map_range}. Calibrate the detector again."
            )
        mark = low * (high / low) ** _MARK_IN_RANGE if region_threshold is None else region_threshold
        return cls(low, mark if low < mark < high else (low * high) ** 0.5, high)

    @staticmethod
    def range_around(mark: float, top: float) -> tuple[float, float]:
        """Return the range to store for a scale whose mark is no region threshold, so that :meth:`of` finds it."""
        return mark / (top / mark) ** (_MARK_IN_RANGE / (1.0 - _MARK_IN_RANGE)), top

    def positions(self, map2d: FloatArray) -> FloatArray:
        """Return positions on the scale, 0 bottom and 1 top, clipped; both halves are logarithmic.

        Call this before any upsampling: between a pixel of 1000 and one of 1, a linear blend would paint a defect at
        twice its size.
        """
        values = np.log(np.clip(checked_map(map2d).astype(np.float64), self.bottom, self.top))
        placed: FloatArray = np.interp(values, np.log(np.array(self)), [0.0, MARK_POSITION, 1.0])
        return placed


def upsample(map2d: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize a map to the size of its image, bilinearly, like torch's ``interpolate(align_corners=False)``.

    Args:
        map2d: One anomaly map ``(h, w)``.
        size: Width and height in pixels; values are averaged if it is smaller than the map.
    """
    picture = Image.fromarray(np.ascontiguousarray(checked_map(map2d), dtype=np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def colours(values: FloatArray) -> Bytes:
    """Return the colours of values in [0, 1] (clipped) as ``(..., 3)`` RGB bytes, dark to light."""
    table = np.asarray(_INFERNO, dtype=np.float64)
    position = np.linspace(0.0, 1.0, len(table))
    steps = np.linspace(0.0, 1.0, 256)
    lookup = np.stack([np.interp(steps, position, table[:, channel]) for channel in range(3)], axis=1)
    index = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.intp)
    coloured: Bytes = np.rint(lookup).astype(np.uint8)[index]
    return coloured


def heatmap_png(map2d: FloatArray, scale: ColourScale, size: tuple[int, int]) -> bytes:
    """Draw one anomaly map as a PNG in the fixed colours of the calibration.

    Args:
        map2d: One anomaly map ``(h, w)``.
        scale: The colours, from the calibration.
        size: Width and height of the picture in pixels.
    """
    buffer = io.BytesIO()
    Image.fromarray(colours(upsample(scale.positions(map2d), size))).save(buffer, "PNG")
    return buffer.getvalue()


def overlay(
    image: Image.Image, map2d: FloatArray, scale: ColourScale, region_threshold: float | None = None
) -> Image.Image:
    """Paint the anomalous part of a map over its image and frame its regions.

    Nothing is painted below the mark of the scale, which is the region threshold if there is one, so a good part keeps
    its look. Paint gets stronger towards the top but never hides the part.

    Args:
        image: The original image, any mode Pillow can convert to RGB.
        map2d: Its anomaly map ``(h, w)``.
        scale: The colours, from the calibration.
        region_threshold: From the calibration; None paints without frames.

    Returns:
        A new RGB image of the size of ``image``.
    """
    base = image.convert("RGB")
    values = upsample(scale.positions(map2d), base.size)
    strength = np.clip((values - MARK_POSITION) / (1.0 - MARK_POSITION), 0.0, 1.0)
    faint, strong = _OPACITY
    opacity = np.where(values > MARK_POSITION, faint + (strong - faint) * strength, 0.0)[..., None]
    mixed = np.asarray(base, dtype=np.float64) * (1.0 - opacity) + colours(values) * opacity
    painted = Image.fromarray(np.rint(mixed).astype(np.uint8))
    if region_threshold is not None:
        _frame(painted, boxes_in_image(map2d, region_threshold, base.size))
    return painted


def _frame(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Draw light frames with a dark edge around the regions: visible on any ground, in colour or not."""
    pen = ImageDraw.Draw(image)
    unit = max(1, round(max(image.size) / 400))
    for box in boxes:
        for distance, width, grey in ((3 * unit, unit, 20), (2 * unit, 2 * unit, 255)):
            left, top = max(0, box.x - distance), max(0, box.y - distance)
            right = min(image.width, box.x + box.width + distance) - 1
            bottom = min(image.height, box.y + box.height + distance) - 1
            pen.rectangle((left, top, right, bottom), outline=(grey, grey, grey), width=width)
