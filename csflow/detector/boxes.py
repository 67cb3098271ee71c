"""Find the defective regions of an anomaly map as boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError

FloatArray: TypeAlias = npt.NDArray[np.floating]


@dataclass(frozen=True, order=True)
class Box:
    """A defective region: top-left corner and size in pixels, and the largest map value inside of it."""

    x: int
    y: int
    width: int
    height: int
    peak: float


def defect_boxes(map2d: FloatArray, threshold: float) -> list[Box]:
    """Find the connected regions of a map above a threshold.

    Pixels that touch by a side or a corner belong together.

    Args:
        map2d: One anomaly map ``(h, w)``.
        threshold: Region threshold of the calibration; a pixel must exceed it.

    Returns:
        Boxes in pixels of ``map2d``, the one with the largest peak first.

    Raises:
        DataError: If the map is not two-dimensional or holds a NaN.
    """
    from scipy import ndimage

    values = checked_map(map2d)
    regions, count = ndimage.label(values > threshold, structure=np.ones((3, 3), dtype=np.int64))
    peaks = np.atleast_1d(ndimage.maximum(values, regions, index=np.arange(1, count + 1)))
    boxes = [
        Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start, float(peak))
        for (rows, columns), peak in zip(ndimage.find_objects(regions), peaks, strict=True)
    ]
    return sorted(boxes, key=lambda box: (-box.peak, box.y, box.x))


def boxes_in_image(map2d: FloatArray, threshold: float, image_size: tuple[int, int]) -> list[Box]:
    """Find the connected regions of a map above a threshold, in pixels of the original image.

    Regions are found on the map as it was calibrated, never on an upsampled one, so there is a box if and only if the
    map's maximum exceeds the threshold. Every image pixel that a map pixel touches is inside of its box.

    Args:
        map2d: One anomaly map ``(h, w)`` that covers the whole image.
        threshold: Region threshold of the calibration.
        image_size: Width and height of the original image in pixels.

    Returns:
        Boxes in pixels of the image, the one with the largest peak first.
    """
    rows, columns = checked_map(map2d).shape
    width, height = image_size
    return [
        _scaled(box, width=width, columns=columns, height=height, rows=rows) for box in defect_boxes(map2d, threshold)
    ]


def checked_map(map2d: FloatArray) -> FloatArray:
    """Return a map unchanged if it is two-dimensional and holds numbers.

    Raises:
        DataError: If it is not, or has a value that is not a number.
    """
    if map2d.ndim != 2 or map2d.size == 0 or np.isnan(map2d).any():
        raise DataError(
            f"Expected one anomaly map (h, w) of numbers, got shape {map2d.shape} with "
            f"{int(np.isnan(map2d).sum())} NaN. Pass a single image's map of a detector that loads cleanly."
        )
    return map2d


def _scaled(box: Box, *, width: int, columns: int, height: int, rows: int) -> Box:
    left, top = box.x * width // columns, box.y * height // rows
    right = -(-(box.x + box.width) * width // columns)
    bottom = -(-(box.y + box.height) * height // rows)
    return Box(left, top, right - left, bottom - top, box.peak)
