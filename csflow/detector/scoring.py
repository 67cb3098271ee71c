"""From latents to what a human reads: score, map, p-value, boxes of defective regions, heat-maps.

Pure functions. Nothing here looks at other images of the same call, and no colour scale is ever
stretched to a single image: a good part keeps looking good.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from csflow.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from csflow.config import ScoringConfig
    from csflow.flow.cross_scale import Pyramid

Floats = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]

# Eleven anchors of matplotlib's "inferno" (CC0): lightness rises steadily, so it survives black-and-white
# print and every common colour blindness. Interpolated linearly it is within 9/255 of the original.
_INFERNO = (
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
)  # fmt: skip

THRESHOLD_POSITION = 0.25
"""Where the region threshold lies on the fixed colour scale (0 bottom, 1 top); see `csflow.detector.calibration`.

Three quarters of the colours are left to tell a faint defect from a strong one.
"""

SCALE_TOP = 100.0
"""Top of the fixed colour scale, in region thresholds."""


@dataclass(frozen=True, order=True)
class Box:
    """A defective region: top-left corner and extent in pixels, and the largest map value inside."""

    x: int
    y: int
    width: int
    height: int
    peak: float


def anomaly_score(latents: Pyramid) -> Tensor:
    r"""Score images by their latents; higher is more anomalous.

    .. math:: \frac{1}{D} \sum_i \sum_{c,h,w} \tfrac12 z_{i,c,h,w}^2

    Args:
        latents: Latents of the flow, level ``i`` is ``(B, C, H / 2**i, W / 2**i)``; D counts all of an image's.

    Returns:
        Scores ``(B,)`` in float32, nats per latent dimension up to a constant. About 0.5 for images
        like the training images.

    Reference:
        The authors' code of CS-Flow (Rudolph et al., WACV 2022): mean of ``z ** 2 / 2`` over all latents.
    """
    import torch

    per_level = [level.float().square().flatten(1).sum(dim=1) for level in latents]
    dimensions = sum(level[0].numel() for level in latents)
    return torch.stack(per_level).sum(dim=0) / (2 * dimensions)


def scored(latents: Pyramid, log_det: Tensor, scoring: ScoringConfig) -> tuple[Tensor, Tensor]:
    r"""Score images by their latents and localise anomalies, in the variants a line can choose.

    ``mean`` is :func:`anomaly_score`; ``nll`` the exact negative log-likelihood a dimension, which counts ``log_det``;
    ``max`` the largest value of the map, halved and per channel so that it has the same unit. The map ``finest`` is
    :func:`anomaly_map`; ``all`` is the mean over the scales of their maps, enlarged bilinearly to the finest.

    Args:
        latents: Latents of the flow, finest first.
        log_det: Of the flow, ``(B,)`` in nats.
        scoring: Which.

    Returns:
        Scores ``(B,)`` and maps ``(B, h, w)``, both in float32.

    Reference:
        Rudolph et al., WACV 2022, Eq. 6 and 8.
    """
    chosen = latents[:1] if scoring.map == "finest" else latents
    size = (int(latents[0].shape[2]), int(latents[0].shape[3]))
    maps = anomaly_map(chosen[:1])
    for level in chosen[1:]:
        maps = maps + anomaly_map([level], size)
    maps = maps[:, 0] / len(chosen)
    if scoring.score == "max":
        return maps.flatten(1).amax(dim=1) / (2 * latents[0].shape[1]), maps
    score = anomaly_score(latents)
    if scoring.score == "nll":
        dimensions = sum(level[0].numel() for level in latents)
        score = score + 0.5 * math.log(2 * math.pi) - log_det / dimensions
    return score, maps


def anomaly_map(latents: Pyramid, size: tuple[int, int] | None = None) -> Tensor:
    r"""Localise anomalies: squared norm over the channels of the finest latent.

    Args:
        latents: Latents of the flow, finest first.
        size: Height and width to upsample to (bilinear); None keeps the size of the finest latent.

    Returns:
        Maps ``(B, 1, H, W)`` in float32.

    Reference:
        Rudolph et al., WACV 2022, Eq. 8 and Fig. 5: only the finest scale is used.
    """
    from torch.nn.functional import interpolate

    maps = latents[0].float().square().sum(dim=1, keepdim=True)
    return maps if size is None else interpolate(maps, size=size, mode="bilinear", align_corners=False)


def p_values(scores: npt.ArrayLike, calibration_scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    r"""Conformal p-values of scores against those of held-out good images.

    .. math:: p(s) = \frac{1 + \#\{j : s_j \ge s\}}{n + 1}

    For a part like the calibration parts, ``P(p <= a) <= a`` for every ``a``.

    Args:
        scores: Scores to judge, any shape.
        calibration_scores: Scores of n held-out good images.

    Raises:
        DataError: If a score is not a number or there is no calibration score.
    """
    judged = np.asarray(scores, dtype=np.float64)
    known = np.sort(np.asarray(calibration_scores, dtype=np.float64).ravel())
    if known.size == 0 or np.isnan(known).any() or np.isnan(judged).any():
        raise DataError(
            f"p-values need scores that are numbers; got {int(np.isnan(judged).sum())} NaN among {judged.size} scores "
            f"and {int(np.isnan(known).sum())} NaN among {known.size} calibration scores. Train or calibrate again."
        )
    at_least = known.size - np.searchsorted(known, judged, side="left")
    return np.asarray((1.0 + at_least) / (known.size + 1.0), dtype=np.float64)


def defect_boxes(map2d: Floats, threshold: float) -> list[Box]:
    """Boxes around the connected regions of a map above a threshold, largest peak first.

    Pixels that touch by a side or a corner belong together.

    Args:
        map2d: One anomaly map ``(h, w)``.
        threshold: Region threshold of the calibration; a pixel must exceed it.

    Returns:
        Boxes in pixels of ``map2d``.

    Raises:
        DataError: If the map is not two-dimensional or holds a NaN.
    """
    from scipy import ndimage

    values = _checked_map(map2d)
    regions, count = ndimage.label(values > threshold, structure=np.ones((3, 3), dtype=np.int64))
    peaks = np.atleast_1d(ndimage.maximum(values, regions, index=np.arange(1, count + 1)))
    boxes = [
        Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start, float(peak))
        for (rows, columns), peak in zip(ndimage.find_objects(regions), peaks, strict=True)
    ]
    return sorted(boxes, key=lambda box: (-box.peak, box.y, box.x))


def boxes_in_image(map2d: Floats, threshold: float, image_size: tuple[int, int]) -> list[Box]:
    """`defect_boxes` in pixels of the original image.

    Regions are found on the map as it was calibrated, never on an upsampled one, so a box exists if and
    only if the map's maximum exceeds the threshold. Every pixel a map cell touches is inside its box.

    Args:
        map2d: One anomaly map ``(h, w)`` that covers the whole image.
        threshold: Region threshold of the calibration.
        image_size: Width and height of the original image.
    """
    rows, columns = _checked_map(map2d).shape
    width, height = image_size
    return [
        _scaled(box, width=width, columns=columns, height=height, rows=rows) for box in defect_boxes(map2d, threshold)
    ]


def upsample(map2d: Floats, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A map in the size of its image, bilinear, exactly like torch's ``interpolate(align_corners=False)``.

    Args:
        map2d: One anomaly map ``(h, w)``.
        size: Width and height wanted; a smaller size than the map's averages instead.
    """
    picture = Image.fromarray(np.ascontiguousarray(_checked_map(map2d), dtype=np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def colours(values: Floats) -> Bytes:
    """Colours of values in [0, 1] (clipped) as ``(..., 3)`` RGB bytes, dark to light."""
    table = np.asarray(_INFERNO, dtype=np.float64)
    place = np.linspace(0.0, 1.0, len(table))
    steps = np.linspace(0.0, 1.0, 256)
    lookup = np.stack([np.interp(steps, place, table[:, channel]) for channel in range(3)], axis=1)
    index = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.intp)
    coloured: Bytes = np.rint(lookup).astype(np.uint8)[index]
    return coloured


def heatmap_png(map2d: Floats, map_range: tuple[float, float], size: tuple[int, int]) -> bytes:
    """One anomaly map as a PNG in the fixed colours of the calibration.

    Args:
        map2d: One anomaly map ``(h, w)``.
        map_range: Map values of the two ends of the colour scale, from the calibration; values beyond are clipped.
        size: Width and height of the picture.
    """
    buffer = io.BytesIO()
    Image.fromarray(colours(upsample(_on_scale(map2d, map_range), size))).save(buffer, "PNG")
    return buffer.getvalue()


def overlay(
    image: Image.Image,
    map2d: Floats,
    map_range: tuple[float, float],
    region_threshold: float | None = None,
) -> Image.Image:
    """Paint the anomalous part of a map over its image and frame its regions.

    Nothing is painted below the region threshold (without one: below its place on the colour scale), so a
    good part keeps its look. Paint gets stronger towards the top but never hides the part.

    Args:
        image: The original image, any mode Pillow can convert to RGB.
        map2d: Its anomaly map ``(h, w)``.
        map_range: Ends of the fixed colour scale, from the calibration.
        region_threshold: From the calibration; None paints without frames.

    Returns:
        A new RGB image of the size of ``image``.
    """
    base = image.convert("RGB")
    values = upsample(_on_scale(map2d, map_range), base.size)
    mark = np.array([[0.0 if region_threshold is None else region_threshold]])
    floor = THRESHOLD_POSITION if region_threshold is None else _on_scale(mark, map_range).item()
    strength = np.clip((values - floor) / max(1.0 - floor, 1e-6), 0.0, 1.0)
    opacity = np.where(values > floor, 0.35 + 0.3 * strength, 0.0)[..., None]
    mixed = np.asarray(base, dtype=np.float64) * (1.0 - opacity) + colours(values) * opacity
    painted = Image.fromarray(np.rint(mixed).astype(np.uint8))
    if region_threshold is not None:
        _frame(painted, boxes_in_image(map2d, region_threshold, base.size))
    return painted


def _checked_map(map2d: Floats) -> Floats:
    if map2d.ndim != 2 or map2d.size == 0 or np.isnan(map2d).any():
        raise DataError(
            f"Expected one anomaly map (h, w) of numbers, got shape {map2d.shape} with "
            f"{int(np.isnan(map2d).sum())} NaN. Pass a single image's map of a detector that loads cleanly."
        )
    return map2d


def _on_scale(map2d: Floats, map_range: tuple[float, float]) -> Floats:
    """Places (0 bottom, 1 top, clipped) on the logarithmic scale: defects exceed good parts by powers of ten.

    Before any upsampling: between a cell of 1000 and one of 1 a linear blend would paint a defect twice its size.
    """
    low, high = map_range
    if not (np.isfinite(low) and np.isfinite(high) and 0.0 < low < high):
        raise DataError(f"The colour scale must run from low to high, got {map_range}. Calibrate the detector again.")
    values = np.clip(_checked_map(map2d).astype(np.float64), low, high)
    scaled: Floats = np.log(values / low) / np.log(high / low)
    return scaled


def _scaled(box: Box, *, width: int, columns: int, height: int, rows: int) -> Box:
    left, top = box.x * width // columns, box.y * height // rows
    right = -(-(box.x + box.width) * width // columns)
    bottom = -(-(box.y + box.height) * height // rows)
    return Box(left, top, right - left, bottom - top, box.peak)


def _frame(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Light frames with a dark edge, drawn around the regions: visible on any ground, in colour or not."""
    pen = ImageDraw.Draw(image)
    unit = max(1, round(max(image.size) / 400))
    for box in boxes:
        for distance, width, grey in ((3 * unit, unit, 20), (2 * unit, 2 * unit, 255)):
            left, top = max(0, box.x - distance), max(0, box.y - distance)
            right = min(image.width, box.x + box.width + distance) - 1
            bottom = min(image.height, box.y + box.height + distance) - 1
            pen.rectangle((left, top, right, bottom), outline=(grey, grey, grey), width=width)
