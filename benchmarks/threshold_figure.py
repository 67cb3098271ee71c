"""Draw the threshold study from its result file, in one picture that can be read without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, SOUND, BROKEN = "#333333", "#9a9a9a", "#0072b2", "#d55e00"  # last two: Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", ":")
COLOURS = ("#000000", SOUND, BROKEN, "#009e73", "#cc79a7", "#8a6d00")

Row = Mapping[str, Any]


def threshold_figure(result: Mapping[str, Any]) -> Figure:
    """Draw rates, kept promises, p-values and broken assumptions.

    Args:
        result: The content of the result file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1)).ravel()
    panels = [*top.subplots(1, 3), bottom.subplots()]
    # A pool used as population has the same scores as the pool; only its true rate is known.
    one_each = [row for row in result["rows"] if not row["source"].endswith("population")]
    p_values = [row for row in result["uniformity"] if not row["source"].endswith("population")]
    _rates(panels[0], [row for row in one_each if row["confidence"] is None])
    _kept(panels[1], result["rows"])
    _p_values(panels[2], p_values, result["p_value_grid"], result["settings"]["draws"])
    _breaks(panels[3], [case for case in result["breaks"] if case["confidence"] is None])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
    return figure


def _rates(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the observed rate over the promised alpha, with the exact range of single draws."""
    from matplotlib.ticker import FuncFormatter

    first = [row for row in rows if row["source"] == rows[0]["source"]]
    alphas = np.array([row["alpha"] for row in first])
    low, high = np.array([_single_draws(row) for row in first]).T
    axes.fill_between(alphas, low, high, color="#e3e3e3", label="95 % of single draws (exact)")
    axes.plot(alphas, alphas, color=INK, linewidth=1.0, label="asked = observed")
    for row, mark, colour, shift in _by_source(rows):
        observed = [(r["alpha"] * shift, r["observed_rate"]) for r in rows if r["source"] == row["source"]]
        axes.plot(*np.array(observed).T, mark, color=colour, markerfacecolor="white", markersize=6, label=row["source"])
    percent = FuncFormatter(lambda value, position: f"{100 * value:g} %")
    axes.set(xscale="log", yscale="log", xticks=alphas, yticks=alphas, xlabel="alpha asked")
    axes.set(ylabel="false-alarm rate observed, mean of all draws")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(percent)
    axes.yaxis.set_major_formatter(percent)
    axes.set_title("Conformal: mean rate of all draws against alpha", loc="left", fontsize=10)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left")


def _single_draws(row: Row) -> tuple[float, float]:
    above = round(row["expected_rate"] * (row["n"] + 1))  # calibration scores at or above the threshold
    exact = stats.betabinom(row["fresh"], above, row["n"] + 1 - above)
    low, high = exact.ppf([0.025, 0.975]) / row["fresh"]
    return max(float(low), 1e-3), float(high)


def _by_source(rows: Sequence[Row]) -> list[tuple[Row, str, str, float]]:
    """Return the first row of every source with its marker, its colour and a small shift that keeps markers apart."""
    firsts = list({row["source"]: row for row in reversed(rows)}.values())[::-1]
    shifts = 1.0 + 0.035 * (np.arange(len(firsts)) - (len(firsts) - 1) / 2)
    return list(zip(firsts, cycle(MARKERS), cycle(COLOURS), shifts.tolist(), strict=False))


def _kept(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the share of draws whose true rate is at most alpha, for both rules, and the exact share."""
    known = [row for row in rows if row["observed_kept"] is not None]
    for tolerance, mark in ((True, "o"), (False, "s")):
        chosen = [row for row in known if (row["confidence"] is not None) == tolerance]
        alphas = sorted({row["alpha"] for row in chosen})
        colour, rule = (SOUND, "tolerance limit") if tolerance else (BROKEN, "conformal")
        positions = [alphas.index(row["alpha"]) for row in chosen]
        spread = 0.05 * ((np.arange(len(chosen)) // max(1, len(alphas))) - 2.5)
        axes.plot(positions + spread, [row["observed_kept"] for row in chosen], mark, color=colour,
                  markerfacecolor="white", markersize=5, label=f"{rule}, observed")  # fmt: skip
        exact = [next(row["expected_kept"] for row in chosen if row["alpha"] == alpha) for alpha in alphas]
        axes.hlines(exact, np.arange(len(alphas)) - 0.35, np.arange(len(alphas)) + 0.35, color=colour,
                    linestyle="-" if tolerance else "--", linewidth=1.4, label=f"{rule}, exact")  # fmt: skip
        axes.set_xticks(range(len(alphas)), [f"{100 * alpha:g} %" for alpha in alphas])
    confidence = next((row["confidence"] for row in known if row["confidence"] is not None), None)
    if confidence is not None:
        axes.axhline(confidence, color=INK, linewidth=0.8, linestyle=":", label=f"confidence {100 * confidence:g} %")
    axes.set(ylim=(0.35, 1.02), xlabel="alpha asked", ylabel="share of draws with true rate at most alpha")
    axes.set_title("Tolerance limit: the promised share keeps it", loc="left", fontsize=10)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right", ncols=2)


def _p_values(axes: Axes, sources: Sequence[Row], grid: Sequence[float], draws: int) -> None:
    """Draw the cumulative share of p-values minus the uniform one, with the range of the Kolmogorov-Smirnov test."""
    half = float(stats.kstwo.ppf(0.99, draws))
    axes.axhspan(-half, half, color="#e3e3e3", label="99 % of uniform samples")
    axes.axhline(0.0, color=INK, linewidth=1.0)
    for row, line, colour in zip(sources, cycle(LINES), cycle(COLOURS), strict=False):
        axes.plot(grid, np.array(row["cumulative"]) - np.array(grid), line, color=colour, label=row["source"])
    axes.set(xlim=(0, 1), ylim=(-0.45, 0.25), xlabel="p-value", ylabel="share of p-values as small, less uniform")
    axes.set_title("p-values of good images are uniform", loc="left", fontsize=10)
    axes.legend(fontsize=7.5, frameon=False, loc="lower left", ncols=2)


def _breaks(axes: Axes, cases: Sequence[Row]) -> None:
    """Draw the rates with the assumption kept (hollow circles) and broken (filled squares)."""
    heights = np.arange(len(cases))[::-1]
    for broken, mark, face, colour in ((False, "o", "white", SOUND), (True, "s", BROKEN, BROKEN)):
        chosen = [
            (case["observed_rate"], y) for case, y in zip(cases, heights, strict=True) if case["broken"] == broken
        ]
        label = "assumption broken" if broken else "assumption kept"
        if chosen:
            axes.plot(*np.array(chosen).T, mark, color=colour, markerfacecolor=face, label=label)
    for case, y in zip(cases, heights, strict=True):
        axes.annotate(f"{100 * case['observed_rate']:.1f} %", (case["observed_rate"], y), xytext=(9, -3),
                      textcoords="offset points", fontsize=8, color=INK, annotation_clip=False)  # fmt: skip
    alpha = cases[0]["alpha"]
    axes.axvline(alpha, color=INK, linewidth=1.0, linestyle="--")
    axes.set_yticks(heights, [f"{case['source']}: {case['case']}" for case in cases])
    axes.set(xlim=(0, 1.05), xlabel=f"false-alarm rate observed; asked {100 * alpha:g} % (dashed)")
    axes.set_title("What breaks it", loc="left", fontsize=10)
    axes.legend(fontsize=7.5, frameon=False, loc="upper right")
