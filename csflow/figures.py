"""Plots of an evaluation, as matplotlib figures that touch no global state.

Good is blue and filled, defective is orange and hatched: told apart without colour, too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csflow.metrics import Interval, RocCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GOOD, DEFECTIVE, INK, FAINT = "#0072b2", "#d55e00", "#333333", "#9a9a9a"  # first two: Okabe and Ito


def roc_figure(
    curve: RocCurve, *, auroc: float, interval: Interval, operating_point: tuple[float, float] | None = None
) -> Figure:
    """Receiver operating characteristic, with the point the threshold works at.

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


def score_histogram(good: npt.ArrayLike, defective: npt.ArrayLike, *, threshold: float | None) -> Figure:
    """How the scores of good and defective test images lie around the threshold.

    Args:
        good: Scores of good images.
        defective: Scores of defective images; may be empty.
        threshold: Drawn as a line; None draws none.
    """
    clean, bad = np.asarray(good, dtype=float), np.asarray(defective, dtype=float)
    both = np.concatenate([clean, bad, [] if threshold is None else [threshold]])
    edges, logarithmic = _bins(both)
    figure, axes = _canvas(7.4, 4.2)
    axes.hist(clean, bins=edges, color=GOOD, alpha=0.75, label=f"good ({clean.size})")
    axes.hist(bad, bins=edges, histtype="stepfilled", facecolor=(0.835, 0.369, 0.0, 0.28), edgecolor=DEFECTIVE,
              linewidth=1.2, hatch="////", label=f"defective ({bad.size})")  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.4)
        axes.annotate(f"threshold {threshold:.4g}", (threshold, 1.0), xycoords=("data", "axes fraction"),
                      xytext=(5, -4), textcoords="offset points", va="top", fontsize=9, color=INK)  # fmt: skip
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlabel="anomaly score" + (" (logarithmic)" if logarithmic else ""), ylabel="test images")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    axes.legend(loc="upper right", frameon=False)
    return figure


def training_curve(nll: Sequence[float]) -> Figure:
    """Negative log-likelihood per dimension against the epoch.

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
    """The figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _bins(values: npt.NDArray[np.float64]) -> tuple[list[float], bool]:
    """Bin edges, and whether they are logarithmic: defects often score a hundred times a good part."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return [0.0, 1.0], False
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return [low - 0.5, low + 0.5], False
    count = int(np.clip(np.sqrt(finite.size) * 2.5, 12, 60))
    if low > 0 and high > 8 * float(np.median(finite)):
        return np.geomspace(low, high, count + 1).tolist(), True
    return np.linspace(low, high, count + 1).tolist(), False
