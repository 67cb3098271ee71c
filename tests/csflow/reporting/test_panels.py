"""Panels show the right pictures in the right places, in colours that mean the same everywhere."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from PIL import Image

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate
from csflow.detector.heatmap import MARK_POSITION, colours
from csflow.reporting.figures import png
from csflow.reporting.findings import Example, ImageResult, Sample, SampleGroup
from csflow.reporting.panels import localisation_figure, mistakes_figure, three_views

HELD_OUT = np.linspace(0.1, 1.0, 40)
CALIBRATION = calibrate(HELD_OUT, HELD_OUT[:, None, None] * np.ones((2, 2)), CalibrationConfig(alpha=0.1))


def result(score: float, defect: str = "", calibration: Calibration = CALIBRATION) -> ImageResult:
    label: Literal["good", "defective"] = "defective" if defect else "good"
    return ImageResult("a.png", label, defect, score, calibration.p_value(score), calibration.decide(score))


def example(defect: str, value: float, size: tuple[int, int] = (60, 40)) -> Example:
    return Example(result(value, defect), Image.new("L", size, 200), np.full((4, 6), value, np.float32))


def sample(group: SampleGroup, score: float, defect: str = "") -> Sample:
    return Sample(group, result(score, defect), Image.new("RGB", (60, 40)), Image.new("RGB", (60, 40), "red"))


def test_the_region_threshold_has_its_fixed_colour_in_every_image() -> None:
    threshold = CALIBRATION.region_threshold
    assert threshold is not None
    for size in ((60, 40), (17, 90)):
        image, heat, _ = three_views(example("hole", threshold, size), CALIBRATION)
        assert image.size == heat.size == size
        expected = colours(np.array([MARK_POSITION]))[0].astype(int)
        assert np.abs(np.asarray(heat, dtype=int) - expected).max() <= 2


def test_a_good_part_is_not_painted_and_a_defect_is() -> None:
    for value, painted in ((0.5, False), (50.0, True)):
        image, _, overlay = three_views(example("hole", value), CALIBRATION)
        assert (np.asarray(overlay) != np.asarray(image.convert("RGB"))).any() == painted


def test_each_kind_has_image_map_and_overlay_below_each_other() -> None:
    examples = [example("", 0.4), example("crack", 3.0), example("hole", 90.0)]
    figure = localisation_figure(examples, CALIBRATION)
    *cells, strip = figure.axes
    assert [axes.get_title() for axes in cells] == ["good", "crack", "hole", *[""] * 6]
    assert [axes.get_ylabel() for axes in cells[::3]] == ["image", "map", "overlay"]
    for column, one in enumerate(examples):
        views = three_views(one, CALIBRATION)
        for row, view in enumerate(views):
            (shown,) = cells[3 * row + column].get_images()
            np.testing.assert_array_equal(shown.get_array(), np.asarray(view.convert("RGB")))
    assert f"{3.0 / CALIBRATION.threshold:.3g} × threshold" in cells[7].get_xlabel()  # type: ignore[operator]
    assert f"region threshold {CALIBRATION.region_threshold:.3g}" in [t.get_text() for t in strip.get_xticklabels()]


def test_many_kinds_go_on_below() -> None:
    figure = localisation_figure([example(f"kind {i}", 2.0) for i in range(5)], CALIBRATION, across=3)
    assert len(figure.axes) == 15 + 1
    assert len(png(figure, dots_per_inch=30)) > 1000


def test_mistakes_are_shown_in_their_order_with_how_wrong_they_are() -> None:
    samples = [
        sample("miss", 0.2, "crack"), sample("miss", 0.4, "hole"), sample("false_alarm", 3.0),
        sample("least_certain", 0.9),
    ]  # fmt: skip
    figure = mistakes_figure(samples, CALIBRATION)
    *cells, _ = figure.axes
    assert [axes.get_title() for axes in cells if axes.get_title()] == ["crack", "hole", "good"]
    assert [axes.get_ylabel() for axes in cells if axes.get_ylabel()] == ["missed", "overlay", "false alarm", "overlay"]
    said = [axes.get_xlabel() for axes in cells if axes.get_xlabel()]
    expected = [samples[i].result for i in (0, 1, 2)]
    assert [text.split("\n")[0] for text in said] == [f"p {r.p_value:.3f}" for r in expected]
    assert said[2].endswith(f"{3.0 / CALIBRATION.threshold:.3g} × threshold")  # type: ignore[operator]


@pytest.mark.parametrize("score", [0.2, -3.0])
def test_without_threshold_the_score_itself_is_said(score: float) -> None:
    bare = calibrate(HELD_OUT, HELD_OUT[:, None, None], "none")
    one = Example(result(score, "hole", bare), Image.new("L", (9, 9)), np.ones((2, 2), np.float32))
    axes = localisation_figure([one], bare).axes
    assert axes[2].get_xlabel() == f"score {score:.4g}"
    assert len(axes[3].get_xticks()) == 2
