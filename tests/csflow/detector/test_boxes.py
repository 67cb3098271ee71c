"""Boxes surround every region above the threshold, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.detector.boxes import Box, boxes_in_image, defect_boxes
from csflow.errors import DataError


def test_boxes_join_corners_and_come_largest_peak_first() -> None:
    values = np.zeros((6, 8))
    values[0, 0] = values[1, 1] = 2.0
    values[3:5, 4:7] = 5.0
    assert defect_boxes(values, 1.0) == [Box(4, 3, 3, 2, 5.0), Box(0, 0, 2, 2, 2.0)]


def test_a_pixel_must_exceed_the_threshold() -> None:
    assert defect_boxes(np.full((3, 3), 1.0), 1.0) == []
    assert len(defect_boxes(np.full((3, 3), 1.0 + 1e-9), 1.0)) == 1


def test_a_box_exists_in_the_image_whenever_the_maximum_exceeds_the_threshold() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        rows, columns = rng.integers(1, 20, size=2)
        width, height = (int(side) for side in rng.integers(1, 300, size=2))
        values = rng.gamma(1.0, size=(rows, columns))
        threshold = float(rng.gamma(2.0))
        boxes = boxes_in_image(values, threshold, (width, height))
        assert bool(boxes) == bool(values.max() > threshold)
        for box in boxes:
            assert 0 <= box.x < box.x + box.width <= width
            assert 0 <= box.y < box.y + box.height <= height


def test_boxes_cover_the_map_cell_in_a_non_square_image() -> None:
    values = np.zeros((2, 4))
    values[1, 3] = 9.0
    assert boxes_in_image(values, 1.0, (401, 51)) == [Box(300, 25, 101, 26, 9.0)]


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2)), np.zeros((0, 3)), np.array([[np.nan]])])
def test_boxes_refuse_what_is_no_map(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="anomaly map"):
        defect_boxes(bad, 0.0)
