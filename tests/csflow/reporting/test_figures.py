"""Plots show what they were given and change nothing outside."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

from csflow.metrics import Interval, roc_curve
from csflow.reporting.figures import (
    feature_histograms,
    png,
    rank_scatter,
    roc_comparison,
    roc_figure,
    score_histogram,
    training_curve,
)
from csflow.reporting.normality import fit_normal

LABELS = np.arange(60) >= 30
SCORES = np.random.default_rng(0).gamma(3, size=60) + LABELS


def test_the_roc_figure_draws_the_curve_and_the_operating_point() -> None:
    curve = roc_curve(SCORES, LABELS)
    figure = roc_figure(curve, auroc=0.8, interval=Interval(0.7, 0.9), operating_point=(0.1, 0.6))
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[1].get_xdata(), curve.false_positive_rate)
    np.testing.assert_array_equal(lines[2].get_xydata(), [(0.1, 0.6)])
    assert "0.800" in figure.axes[0].get_title(loc="left")


def test_the_roc_curves_of_detectors_are_ranked_and_told_apart_without_colour() -> None:
    draw = np.random.default_rng(1)
    scores = {f"detector {i}": SCORES + draw.normal(scale=i, size=60) for i in range(12)}
    axes = roc_comparison({name: roc_curve(values, LABELS) for name, values in scores.items()}).axes[0]
    lines = axes.get_lines()[1:]
    assert len({(str(line._dash_pattern), line.get_marker()) for line in lines}) == 12
    expected = {name: roc_auc_score(LABELS, values) for name, values in scores.items()}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{name}  {expected[name]:.3f}" for name in sorted(expected, key=lambda name: -expected[name])]


def bars(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Heights and edges of each histogram drawn."""
    return [(patch.get_data()[0], patch.get_data()[1]) for patch in axes.patches if isinstance(patch, StepPatch)]


def test_the_histogram_holds_every_image_once_as_shares() -> None:
    good, bad = np.array([1.0, 1.1, 1.2, 1.3]), np.array([1.25, 1.9, 50.0, np.inf, 900.0])
    figure = score_histogram(good, bad, threshold=1.5)
    shares, edges = [heights for heights, _ in bars(figure.axes[0])], bars(figure.axes[0])[0][1]
    assert [share.sum() for share in shares] == pytest.approx([1.0, 1.0])
    assert edges[-2] == pytest.approx(1.0 + 1.5 * 0.5)  # half as far beyond the threshold as it is from the lowest
    assert shares[1][-1] == pytest.approx(4 / 5)  # 1.9, 50, 900 and infinity
    assert np.ptp(np.diff(edges)) < 1e-9
    figure.canvas.draw()
    assert figure.axes[0].get_xticklabels()[-1].get_text() == "≥ 1.75"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["good (4)", "defective (5)"]


def test_a_histogram_without_far_scores_has_no_open_bin() -> None:
    figure = score_histogram([1.0, 1.1, 1.2], [1.3], threshold=1.25)
    assert bars(figure.axes[0])[0][1][-1] == pytest.approx(1.3)
    assert not any("≥" in text.get_text() for text in figure.axes[0].get_xticklabels())


@pytest.mark.parametrize(
    ("good", "defective", "threshold"),
    [([1.0, 1.1, 1.2], [300.0], 2.0), ([1.0, 1.1], [2.0], None), ([-5.0, 1.0], [900.0], 2.0), ([2.0, 2.0], [], None),
     ([], [], None), ([], [], 1.0), ([np.inf, 1.0], [2.0], 1.5), ([], [3.0, np.inf], None), ([2.0], [np.inf], None)],
)  # fmt: skip
def test_the_histogram_takes_any_scores(good: list[float], defective: list[float], threshold: float | None) -> None:
    figure = score_histogram(good, defective, threshold=threshold)
    sums = [heights.sum() for heights, _ in bars(figure.axes[0])]
    assert sums == pytest.approx([float(bool(good)), float(bool(defective))])
    assert len(png(figure, dots_per_inch=50)) > 1000


def test_feature_histograms_show_data_and_normal_on_one_scale() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, size=(400, 4))
    figure = feature_histograms(values, fit_normal(values), ["a", "b", "c", "d"])
    assert len(figure.axes) == 6
    panel = figure.axes[1]
    (line,) = panel.get_lines()
    x, y = (np.asarray(values) for values in line.get_data())
    assert y == pytest.approx(stats.norm.pdf(x, values[:, 1].mean(), values[:, 1].std()))
    ((density, edges),) = bars(panel)
    assert (density * np.diff(edges)).sum() == pytest.approx(1.0)
    assert panel.get_title(loc="left").startswith("b\nKS distance 0.0")
    assert not figure.axes[5].axison


def test_a_constant_feature_is_drawn_without_a_normal() -> None:
    values = np.full((20, 1), 4.0)
    assert feature_histograms(values, fit_normal(values), ["still"]).axes[0].get_lines() == []


def test_the_rank_scatter_shows_every_image_by_kind() -> None:
    ranks = np.linspace(0, 1, 60)
    axes = rank_scatter(ranks, ranks[::-1], LABELS, names=("one", "two"), thresholds=(0.5, None)).axes[0]
    good, bad = (np.asarray(collection.get_offsets()) for collection in axes.collections)
    np.testing.assert_allclose(good, np.stack([ranks, ranks[::-1]], axis=1)[~LABELS])
    assert len(bad) == 30
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rank by one", "rank by two")
    assert len(axes.get_lines()) == 2  # the diagonal and one threshold


def test_the_training_curve_counts_epochs_from_one() -> None:
    line = training_curve([3.0, 2.0, 1.5]).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), [(1, 3.0), (2, 2.0), (3, 1.5)])


def test_a_png_is_the_same_every_time() -> None:
    files = [png(training_curve([3.0, 2.0]), dots_per_inch=50) for _ in range(2)]
    assert files[0] == files[1]
    assert Image.open(io.BytesIO(files[0])).format == "PNG"


def test_importing_draws_nothing_and_pyplot_stays_out() -> None:
    code = (
        "import sys, csflow.reporting.figures; print('matplotlib' in sys.modules);"
        "csflow.reporting.figures.training_curve([1.0]); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
