"""Draw panels of pictures: the maps of typical parts, and the detector's mistakes.

The colours of a map are fixed at calibration and mean the same on every image; their lightness rises steadily, so
they can be read in black and white.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from csflow.detector.calibration import Calibration
from csflow.detector.heatmap import MARK_POSITION, colours, heatmap_png, overlay
from csflow.reporting.figures import FAINT, INK
from csflow.reporting.findings import Example, ImageResult, Sample, times_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 1.9
"""Side of a picture's cell in inches."""

_PIXELS = 420
"""Longest side of a picture in pixels: a cell at 220 dots per inch."""


class PictureCell(NamedTuple):
    """A picture and the text around it; an empty cell has none."""

    picture: Image.Image | None = None
    above: str = ""
    below: str = ""


def three_views(example: Example, calibration: Calibration) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Return an image, its map in the fixed colours, and the map painted over the image."""
    heat = Image.open(io.BytesIO(heatmap_png(example.map2d, calibration.scale, example.image.size)))
    painted = overlay(example.image, example.map2d, calibration.scale, calibration.region_threshold)
    return example.image, heat, painted


def localisation_figure(examples: Sequence[Example], calibration: Calibration, *, across: int = 6) -> Figure:
    """Draw image, map and overlay of one example of each kind, one below the other.

    Args:
        examples: At least one.
        calibration: Its fixed colour scale is drawn below.
        across: Examples next to each other; further ones go into further rows.

    Reference:
        Rudolph et al., WACV 2022, Fig. 7.
    """
    rows: list[list[PictureCell]] = []
    for start in range(0, len(examples), across):
        chunk = examples[start : start + across]
        views = [three_views(example, calibration) for example in chunk]
        below = [_said(example.result, calibration.threshold) for example in chunk]
        rows.append([PictureCell(view[0], above=e.result.kind) for view, e in zip(views, chunk, strict=True)])
        rows.append([PictureCell(view[1]) for view in views])
        rows.append([PictureCell(view[2], below=text) for view, text in zip(views, below, strict=True)])
    figure, strip = _grid(rows, ["image", "map", "overlay"] * (len(rows) // 3))
    _colour_strip(strip, calibration)
    return figure


def mistakes_figure(samples: Sequence[Sample], calibration: Calibration, *, across: int = 6) -> Figure:
    """Draw misses and false alarms, the worst first, each with its p-value and score.

    Args:
        samples: Those of the groups ``miss`` and ``false_alarm`` are shown; at least one.
        calibration: Of the detector that made the overlays.
        across: Mistakes next to each other; further ones go into further rows.
    """
    rows: list[list[PictureCell]] = []
    labels: list[str] = []
    for group, title in (("miss", "missed"), ("false_alarm", "false alarm")):
        members = [sample for sample in samples if sample.group == group]
        for start in range(0, len(members), across):
            chunk = members[start : start + across]
            rows.append([PictureCell(sample.image, above=sample.result.kind) for sample in chunk])
            rows.append([PictureCell(s.overlay, below=_said(s.result, calibration.threshold)) for s in chunk])
            labels += [title, "overlay"]
    figure, strip = _grid(rows, labels)
    _colour_strip(strip, calibration)
    return figure


def _said(result: ImageResult, threshold: float | None) -> str:
    times = times_threshold(result.score, threshold)
    lines = [] if result.p_value is None else [f"p {result.p_value:.3f}"]
    lines.append(f"score {result.score:.4g}" if times is None else f"{times:.3g} × threshold")
    return "\n".join(lines)


def _grid(rows: Sequence[Sequence[PictureCell]], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Draw pictures in rows with a label at the left of each row, and return flat axes below them all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(columns * _CELL + 0.4, len(rows) * _CELL + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows) + 1, columns, height_ratios=[1.0] * len(rows) + [0.07])
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            axes = figure.add_subplot(grid[y, x])
            _show(axes, cell)
            if x == 0:
                axes.set_ylabel(labels[y], fontsize=9, color=INK)
    return figure, figure.add_subplot(grid[len(rows), :])


def _show(axes: Axes, cell: PictureCell) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(FAINT)
    axes.set_title(cell.above, fontsize=9, color=INK)
    axes.set_xlabel(cell.below, fontsize=8.5, color=INK)
    if cell.picture is not None:
        small = cell.picture.convert("RGB")
        small.thumbnail((_PIXELS, _PIXELS))
        axes.imshow(np.asarray(small))


def _colour_strip(axes: Axes, calibration: Calibration) -> None:
    """Draw the fixed colour scale, with the value at which a region becomes defective."""
    bottom, mark, top = calibration.scale
    axes.imshow(colours(np.linspace(0.0, 1.0, 512))[None], aspect="auto", extent=(0.0, 1.0, 0.0, 1.0))
    ticks, labels = [0.0, 1.0], [f"{bottom:.3g}", f"{top:.3g}"]
    if calibration.region_threshold is not None:
        ticks.append(MARK_POSITION)
        labels.append(f"region threshold {mark:.3g}")
    axes.set_xticks(ticks, labels, fontsize=8.5)
    axes.set_yticks([])
    axes.set_xlabel("map value (logarithmic): the same colours for every image", fontsize=8.5, color=INK)
