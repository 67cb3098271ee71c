"""Plot the results of an ablation: quality against time with the Pareto front, and ROC curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csflow.ablation.summaries import VariantSummary, by_group
from csflow.ablation.tradeoff import ABOUT_DATA, METRIC, Criterion, pareto_front
from csflow.reporting.figures import DEFECTIVE, FAINT, GOOD, INK, roc_comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from csflow.metrics import RocCurve

MOST_CURVES = 8
"""Most ROC curves in one picture: more cannot be distinguished."""

_LABEL = {"test": "image AUROC of the test images (%)", "synthetic": "AUROC against synthetic defects (%)"}

_OFFSETS = tuple((x * step, y * step) for step in (1.0, 1.7, 2.5, 3.4, 4.4, 5.5) for x, y in (
    (0.9, 0.6), (0.9, -0.6), (-0.9, 0.6), (-0.9, -0.6), (1, 0), (0, 1), (0, -1), (-1, 0),
))  # fmt: skip
"""Offsets tried for a number from its point, in label heights, the nearest first."""


class _Point(NamedTuple):
    """A dot in the picture: one experiment with all its names."""

    milliseconds: float
    percent: float
    low: float
    high: float
    names: tuple[str, ...]


def tradeoff_figure(summaries: Sequence[VariantSummary]) -> Figure:
    """Plot AUROC against milliseconds per image, with a numbered list of the variants on the right.

    The Pareto front is drawn as filled squares on a line, the rest as hollow dots, so nothing depends on colour. The
    AUROC is that of the test images; if no variant has one, it is the AUROC against synthetic defects.

    Args:
        summaries: Variants of one line. Those without both figures are left out, and so are those that vary the images
            fitted and not the detector: they cannot be chosen.
    """
    summaries = [summary for summary in summaries if summary.variant.group not in ABOUT_DATA]
    by: Criterion = "test" if any(summary.metric(METRIC["test"]) for summary in summaries) else "synthetic"
    points = _points(summaries, METRIC[by])
    height = max(5.4, 0.19 * sum(len(point.names) for point in points) + 1.2)
    figure, axes, listing = _canvas(height)
    axes.set(xlabel="milliseconds per image (log scale)", ylabel=_LABEL[by])
    if not points:
        axes.text(0.5, 0.5, "no variant has both figures", transform=axes.transAxes, ha="center", color=INK)
        return figure
    front = pareto_front([(point.milliseconds, point.percent) for point in points])
    _draw(axes, points, front)
    _number(figure, axes, points)
    _explain(listing, points, front)
    return figure


def roc_figures(summaries: Sequence[VariantSummary]) -> dict[str, Figure]:
    """Plot the ROC curves of every group's variants on one axis, for the first seed that ran without error.

    Of more than ``MOST_CURVES`` variants the best ones are shown.

    Args:
        summaries: Variants of one line, which share their test images; those without scores are left out.

    Returns:
        Figures by group; groups with fewer than two curves have none.

    Reference:
        Rudolph et al., WACV 2022, Fig. 6.
    """
    return {
        group: roc_comparison(dict(curves[:MOST_CURVES]))
        for group, same in by_group(summaries).items()
        if len(curves := _curves(same)) > 1
    }


def _curves(summaries: Sequence[VariantSummary]) -> list[tuple[str, RocCurve]]:
    """Return name and curve of each variant's first seed that ran without error, largest area first."""
    from csflow.metrics import roc_curve

    found: list[tuple[float, str, RocCurve]] = []
    for summary in summaries:
        scores = summary.sound[0].test_scores if summary.sound else {}
        if not scores:
            continue
        good, defective = (np.asarray(scores[label]) for label in ("good", "defective"))
        curve = roc_curve(np.concatenate([good, defective]), np.repeat([False, True], [len(good), len(defective)]))
        area = float(np.trapezoid(curve.true_positive_rate, curve.false_positive_rate))
        found.append((area, summary.variant.name, curve))
    return [(name, curve) for _, name, curve in sorted(found, key=lambda each: -each[0])]


def _points(summaries: Sequence[VariantSummary], metric: str) -> list[_Point]:
    """Return one point per experiment, fastest first."""
    found: dict[tuple[str, ...], _Point] = {}
    for summary in summaries:
        milliseconds, measured = summary.milliseconds, summary.metric(metric)
        if milliseconds is None or measured is None:
            continue
        key = tuple(row.key for row in summary.rows)
        names = (*found[key].names, summary.name) if key in found else (summary.name,)
        found[key] = _Point(milliseconds, 100 * measured.value, 100 * measured.low, 100 * measured.high, names)
    return sorted(found.values(), key=lambda point: (point.milliseconds, -point.percent))


def _canvas(height: float) -> tuple[Figure, Axes, Axes]:
    """Create the figure with axes for the plot on the left and for the list on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes, listing = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(which="major", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    listing.set_axis_off()
    return figure, axes, listing


def _draw(axes: Axes, points: Sequence[_Point], front: Sequence[int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    rest = [point for index, point in enumerate(points) if index not in front]
    best = [points[index] for index in front]
    axes.vlines([p.milliseconds for p in points], [p.low for p in points], [p.high for p in points], color=FAINT,
                linewidth=0.8, zorder=1, label="95 % interval")  # fmt: skip
    axes.plot([p.milliseconds for p in best], [p.percent for p in best], color=GOOD, linewidth=1.4, marker="s",
              markersize=8, drawstyle="steps-post", zorder=3, label="Pareto front (unbeaten)")  # fmt: skip
    axes.plot([p.milliseconds for p in rest], [p.percent for p in rest], linestyle="none", marker="o", markersize=7,
              markerfacecolor="white", markeredgecolor=DEFECTIVE, markeredgewidth=1.5, zorder=2,
              label="beaten by another one")  # fmt: skip
    fastest, slowest = points[0].milliseconds, points[-1].milliseconds
    axes.set_xlim(fastest / 1.25, slowest * 1.25)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _zoom(axes, points)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8.5, borderaxespad=0.2)


def _zoom(axes: Axes, points: Sequence[_Point]) -> None:
    """Fit the y axis to the points; intervals may be cut off, since a wide one would flatten the rest."""
    values = [point.percent for point in points]
    room = max(0.12 * (max(values) - min(values)), 0.4)
    axes.set_ylim(min(values) - 1.5 * room, min(max(values) + 1.5 * room, 100.0 + room))


def _number(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    """Write each point's number at the nearest free position, with a thin line to the point if that is far away."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # pixel positions are known from here on
    unit = 13 * figure.dpi / 72
    dots = [axes.transData.transform((point.milliseconds, point.percent)) for point in points]
    taken = [Bbox.from_bounds(x - 0.35 * unit, y - 0.35 * unit, 0.7 * unit, 0.7 * unit) for x, y in dots]
    for number, (x, y) in enumerate(dots, start=1):
        width = 0.62 * unit * len(str(number))
        boxes = [
            Bbox.from_bounds(x + dx * unit - width / 2, y + dy * unit - unit / 2, width, unit) for dx, dy in _OFFSETS
        ]
        box = min(boxes, key=lambda each: sum(each.overlaps(other) for other in taken))
        taken.append(box)
        offset = ((box.x0 + box.x1) / 2 - x, (box.y0 + box.y1) / 2 - y)
        point = points[number - 1]
        axes.annotate(str(number), (point.milliseconds, point.percent), ha="center", va="center_baseline",
                      xytext=(offset[0] * 72 / figure.dpi, offset[1] * 72 / figure.dpi), textcoords="offset points",
                      fontsize=9, color=INK, annotation_clip=False, gid="number", zorder=5,
                      path_effects=[withStroke(linewidth=2.5, foreground="white")],
                      arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 5, "shrinkB": 4}
                      if max(map(abs, offset)) > 1.2 * unit else None)  # fmt: skip


def _explain(listing: Axes, points: Sequence[_Point], front: Sequence[int]) -> None:
    """List number, name, milliseconds and AUROC of every point; those on the front in bold."""
    lines = [
        (f"{number if alias == 0 else '':>3}", name, f"{point.milliseconds:8.1f} ms {point.percent:7.2f} %", number - 1)
        for number, point in enumerate(points, start=1)
        for alias, name in enumerate(point.names)
    ]
    step = 1.0 / max(len(lines), 26)
    for row, (number, name, figures, index) in enumerate(lines):
        weight = "bold" if index in front else "normal"
        y = 1.0 - (row + 0.5) * step
        for x, text, align in ((0.04, number.strip(), "right"), (0.07, name, "left")):
            listing.text(x, y, text, ha=align, va="center", fontsize=8.5, color=INK, weight=weight, gid="list",
                        transform=listing.transAxes)  # fmt: skip
        if number.strip():
            listing.text(1.0, y, figures.strip(), ha="right", va="center", fontsize=8.5, color=INK, weight=weight,
                        transform=listing.transAxes, gid="list")  # fmt: skip
