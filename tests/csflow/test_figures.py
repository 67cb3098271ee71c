"""Plots show what they were given and change nothing outside."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from csflow.figures import png, roc_figure, score_histogram, training_curve
from csflow.metrics import Interval, roc_curve

LABELS = np.arange(60) >= 30
SCORES = np.random.default_rng(0).gamma(3, size=60) + LABELS


def test_the_roc_figure_draws_the_curve_and_the_operating_point() -> None:
    curve = roc_curve(SCORES, LABELS)
    figure = roc_figure(curve, auroc=0.8, interval=Interval(0.7, 0.9), operating_point=(0.1, 0.6))
    lines = figure.axes[0].get_lines()
    np.testing.assert_array_equal(lines[1].get_xdata(), curve.false_positive_rate)
    np.testing.assert_array_equal(lines[2].get_xydata(), [(0.1, 0.6)])
    assert "0.800" in figure.axes[0].get_title(loc="left")


def test_the_histogram_holds_every_image_once() -> None:
    axes = score_histogram(SCORES[~LABELS], SCORES[LABELS], threshold=2.0).axes[0]
    bars = [container for container in axes.containers if len(container) > 1]
    assert sum(bar.get_height() for bar in bars[0]) == 30
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["good (30)", "defective (30)"]


@pytest.mark.parametrize(
    ("good", "defective", "threshold", "scale"),
    [([1.0, 1.1, 1.2], [300.0], 2.0, "log"), ([1.0, 1.1], [2.0], None, "linear"), ([-5.0, 1.0], [900.0], 2.0, "linear"),
     ([2.0, 2.0], [], None, "linear"), ([], [], None, "linear"), ([np.inf, 1.0], [2.0], 1.5, "linear")],
)  # fmt: skip
def test_the_histogram_takes_any_scores(
    good: list[float], defective: list[float], threshold: float | None, scale: str
) -> None:
    figure = score_histogram(good, defective, threshold=threshold)
    assert figure.axes[0].get_xscale() == scale
    assert len(png(figure)) > 1000


def test_the_training_curve_counts_epochs_from_one() -> None:
    line = training_curve([3.0, 2.0, 1.5]).axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xydata(), [(1, 3.0), (2, 2.0), (3, 1.5)])


def test_a_png_is_the_same_every_time() -> None:
    files = [png(training_curve([3.0, 2.0]), dots_per_inch=50) for _ in range(2)]
    assert files[0] == files[1]
    assert Image.open(io.BytesIO(files[0])).format == "PNG"


def test_importing_draws_nothing_and_pyplot_stays_out() -> None:
    code = (
        "import sys, csflow.figures; assert 'matplotlib' not in sys.modules;"
        "csflow.figures.training_curve([1.0]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
