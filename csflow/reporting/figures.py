"""Draw the plots of an evaluation as matplotlib figures, without touching global state.

Good is blue and filled, defective is orange and hatched or hollow; detectors differ in line style and marker, so
everything can be told apart without colour, too. Pictures of parts are in `csflow.reporting.panels`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csflow.metrics import Interval, RocCurve
from csflow.metrics.ranking import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from csflow.reporting.normality import NormalFit


GOOD, DEFECTIVE, INK, FAINT = "#0072b2", "#d55e00", "#333333", "#9a9a9a"  # first two: Okabe and Ito

# Line styles, markers and colours of several detectors; their counts have no common factor, so pairs repeat late.
_LINES = ("-", "--", "-.", ":", (0, (8, 2, 1, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COLOURS = ("#000000", GOOD, DEFECTIVE, "#009e73", "#cc79a7", "#8a6d00")  # Okabe and Ito, the yellow darkened

_OPEN_END = 1.5
"""Where the histogram's open bin begins: at this multiple of the distance between the lowest score and the threshold,
or the 99 % quantile of the good scores if that is higher."""


def roc_figure(
    curve: RocCurve, *, auroc: float, interval: Interval, operating_point: tuple[float, float] | None = None
) -> Figure:
    """Draw the receiver operating characteristic, with the operating point of the threshold.

    Args:
        curve: From `csflow.metrics.roc_curve`.
        auroc: Image AUROC.
        interval: Its interval.
        operating_point: False-alarm rate and detection rate at the threshold.
    """
    figure, axes = _canvas(4.72, 4.2)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=INK, linewidth=1.8, drawstyle="steps-post")
    if operating_point is not None:
        axes.plot(*operating_point, marker="o", markersize=8, markerfacecolor="white", markeredgecolor=DEFECTIVE,
                  markeredgewidth=2, linestyle="none", label="at the threshold", clip_on=False, zorder=5)  # fmt: skip
        axes.legend(loc="lower right", frameon=False)
    axes.set(xlim=(-0.01, 1.0), ylim=(0.0, 1.01), xlabel="good parts called defective", ylabel="defective parts found")
    axes.set_title(f"AUROC {auroc:.3f}  [{interval.low:.3f}, {interval.high:.3f}]", loc="left", fontsize=10)
    return figure


def roc_comparison(curves: Mapping[str, RocCurve]) -> Figure:
    """Draw the ROC curves of several detectors in one plot, the best first in the legend.

    Args:
        curves: By the detectors' names; the AUROC in the legend is the area below the curve.

    Reference:
        Rudolph et al., WACV 2022, Fig. 6.
    """
    figure, axes = _canvas(5.6, 5.0)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
    areas = {name: float(np.trapezoid(c.true_positive_rate, c.false_positive_rate)) for name, c in curves.items()}
    ranked = sorted(curves, key=lambda name: -areas[name])
    for rank, (name, line, marker, colour) in enumerate(
        zip(ranked, cycle(_LINES), cycle(_MARKERS), cycle(_COLOURS), strict=False)
    ):
        axes.plot(
            curves[name].false_positive_rate, curves[name].true_positive_rate, drawstyle="steps-post",
            color=colour, linestyle=line, linewidth=1.5, marker=marker, markersize=5.5, markerfacecolor="white",
            markevery=(0.03 + 0.02 * (rank % 7), 0.17), label=f"{name}  {areas[name]:.3f}",
        )  # fmt: skip
    axes.set(xlim=(-0.01, 1.0), ylim=(0.0, 1.01), xlabel="good parts called defective", ylabel="defective parts found")
    axes.legend(loc="lower right", frameon=False, fontsize=9, title="image AUROC", title_fontsize=9, handlelength=3.6)
    return figure


def score_histogram(good: npt.ArrayLike, defective: npt.ArrayLike, *, threshold: float | None) -> Figure:
    """Draw the histogram of the scores of good and of defective test images, as shares of each kind.

    A defect may score a hundred times as high as a good part, so the last bin is open: it holds every score from the
    value at its tick upwards. With ``r`` the threshold, or the 99 % quantile of the good scores if that is higher, the
    open bin begins at 1.5 times the distance from the lowest score to ``r``.

    Args:
        good: Scores of good images.
        defective: Scores of defective images; may be empty.
        threshold: Drawn as a line; None draws none.

    Reference:
        Rudolph et al., WACV 2022, Fig. 5.
    """
    clean, bad = np.asarray(good, dtype=float), np.asarray(defective, dtype=float)
    edges, is_open = _bins(clean, bad, threshold)
    figure, axes = _canvas(7.4, 4.2)
    axes.stairs(_shares(clean, edges), edges, fill=True, color=GOOD, alpha=0.75, label=f"good ({clean.size})")
    axes.stairs(_shares(bad, edges), edges, fill=True, facecolor=(0.835, 0.369, 0.0, 0.28), edgecolor=DEFECTIVE,
                linewidth=1.2, hatch="////", label=f"defective ({bad.size})")  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.4)
        axes.annotate(f"threshold {threshold:.4g}", (threshold, 1.0), xycoords=("data", "axes fraction"),
                      xytext=(5, -4), textcoords="offset points", va="top", fontsize=9, color=INK)  # fmt: skip
    if is_open:
        _mark_open_bin(axes, edges)
    axes.set(xlabel="anomaly score", ylabel="share of the images of each kind")
    axes.set_ylim(0.0, axes.get_ylim()[1] * 1.12)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2)
    return figure


def feature_histograms(values: Floats, fit: NormalFit, names: Sequence[str]) -> Figure:
    """Draw histograms of single features over many images, each with the normal distribution fitted to it.

    Args:
        values: ``(N, K)``, one feature a column.
        fit: From `csflow.reporting.normality.fit_normal` of ``values``.
        names: Name of each feature ``(K,)``.

    Reference:
        Rudolph et al., WACV 2022, Fig. 2.
    """
    count = values.shape[1]
    columns = min(3, max(1, count))
    figure, grid = _canvases(-(-count // columns), columns, 3.9, 2.7)
    for index, axes in enumerate(grid):
        if index >= count:
            axes.set_axis_off()
            continue
        _feature_histogram(axes, values[:, index], float(fit.mean[index]), float(fit.deviation[index]))
        axes.set_title(f"{names[index]}\nKS distance {fit.distance[index]:.3f}", loc="left", fontsize=9)
    return figure


def rank_scatter(
    champion: npt.ArrayLike,
    challenger: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    names: tuple[str, str],
    thresholds: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """Draw the ranks of the same images by two detectors; on the diagonal they agree.

    Args:
        champion: Ranks of the images by the first detector ``(n,)`` in [0, 1], 1 the most anomalous.
        challenger: Their ranks by the second detector ``(n,)``.
        labels: ``(n,)``, True = defective.
        names: Names of both detectors.
        thresholds: Share of the images at or below each threshold; None draws none.
    """
    first, second, bad = np.asarray(champion), np.asarray(challenger), np.asarray(labels, dtype=bool)
    figure, axes = _canvas(5.6, 5.2)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (4, 4)))
    if thresholds[0] is not None:
        axes.axvline(thresholds[0], color=INK, linewidth=1.2)
    if thresholds[1] is not None:
        axes.axhline(thresholds[1], color=INK, linewidth=1.2)
    axes.scatter(first[~bad], second[~bad], s=16, marker="o", color=GOOD, alpha=0.7, linewidths=0,
                 label=f"good ({int((~bad).sum())})")  # fmt: skip
    axes.scatter(first[bad], second[bad], s=30, marker="^", facecolors="none", edgecolors=DEFECTIVE, linewidths=1.1,
                 label=f"defective ({int(bad.sum())})")  # fmt: skip
    axes.set(xlim=(-0.01, 1.02), ylim=(-0.01, 1.02), xlabel=f"rank by {names[0]}", ylabel=f"rank by {names[1]}")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2)
    return figure


def training_curve(nll: Sequence[float]) -> Figure:
    """Draw the negative log-likelihood per dimension, in nats, over the epochs.

    Args:
        nll: One value an epoch, from epoch 1.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(12.4, 3.2)
    axes.plot(np.arange(1, len(nll) + 1), nll, color=GOOD, linewidth=1.8, marker="o" if len(nll) < 40 else None,
              markersize=3.5)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="nll per dimension (nats)")
    axes.set_xlim(0, len(nll) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def png(figure: Figure, *, dots_per_inch: int = 160) -> bytes:
    """Encode the figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def _canvases(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a grid of equal axes, ``width`` by ``height`` inches each, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = [figure.add_subplot(rows, columns, number) for number in range(1, rows * columns + 1)]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure, grid


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure, grid = _canvases(1, 1, width, height)
    return figure, grid[0]


def _feature_histogram(axes: Axes, values: Floats, mean: float, deviation: float) -> None:
    from scipy import stats

    edges = np.linspace(*_finite_range(values), int(np.clip(np.sqrt(values.size) * 1.5, 10, 50)) + 1)
    density, _ = np.histogram(values, edges, density=True)
    axes.stairs(density, edges, fill=True, facecolor=(0.0, 0.447, 0.698, 0.3), edgecolor=GOOD, linewidth=0.8)
    if deviation > 0:
        x = np.linspace(edges[0], edges[-1], 200)
        axes.plot(x, stats.norm.pdf(x, mean, deviation), color=INK, linewidth=1.8)
    axes.set_yticks([])


def _mark_open_bin(axes: Axes, edges: Floats) -> None:
    """Set the ticks: those below the open bin, and one in its middle that says where it begins."""
    ticks = [tick for tick in axes.get_xticks() if edges[0] <= tick <= edges[-2] - 2 * (edges[-1] - edges[-2])]
    labels = [f"{tick:.4g}" for tick in ticks]
    axes.set_xticks([*ticks, (edges[-2] + edges[-1]) / 2], [*labels, f"≥ {edges[-2]:.3g}"])
    axes.axvline(edges[-2], color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))


def _bins(clean: Floats, bad: Floats, threshold: float | None) -> tuple[Floats, bool]:
    """Return the edges of equal bins, and True if the last one is open."""
    marks = np.concatenate([clean, bad, [] if threshold is None else [threshold]])
    low, high = _finite_range(marks)
    good = clean[np.isfinite(clean)]
    wide = [float(np.quantile(good, 0.99))] if good.size else []
    reach = max([low, *wide, *([] if threshold is None else [threshold])])
    end = low + _OPEN_END * (reach - low) if reach > low else high
    count = int(np.clip(np.sqrt(marks.size) * 2.5, 12, 40))
    if marks.size == 0 or marks.max() <= end:
        return np.linspace(low, high, count + 1), False
    return np.asarray(low + (end - low) / count * np.arange(count + 2), dtype=np.float64), True


def _shares(scores: Floats, edges: Floats) -> Floats:
    """Return the share of the scores in each bin; scores beyond the ends count in the outermost bins."""
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    return np.asarray(counts / max(1, scores.size), dtype=np.float64)


def _finite_range(values: Floats) -> tuple[float, float]:
    """Return the smallest and the largest finite value; a margin keeps them apart if they are equal."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
