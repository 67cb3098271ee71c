"""Heat-maps and overlays have one colour scale for all images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from csflow.detector.heatmap import colours, heatmap_png, overlay
from csflow.errors import DataError


def test_colours_follow_inferno_and_grow_lighter_all_the_way() -> None:
    import matplotlib

    steps = np.linspace(0, 1, 256)
    ours = colours(steps).astype(int)
    theirs = matplotlib.colormaps["inferno"](steps)[:, :3] * 255
    assert np.abs(ours - theirs).max() < 10
    grey = np.asarray(Image.fromarray(colours(steps[None])).convert("L")).astype(int)[0]
    assert (np.diff(grey) >= 0).all()
    assert grey[-1] - grey[0] > 200


def test_the_heatmap_has_the_size_asked_for_and_a_scale_that_no_image_moves() -> None:
    quiet, loud = np.full((3, 3), 1.0), np.array([[1.0, 1e6]])
    pictures = [Image.open(io.BytesIO(heatmap_png(m, (0.1, 100.0), (30, 20)))) for m in (quiet, loud)]
    assert [p.size for p in pictures] == [(30, 20)] * 2
    assert pictures[0].getpixel((0, 0)) == pictures[1].getpixel((0, 0)) == tuple(colours(np.array(1 / 3)))
    assert pictures[1].getpixel((29, 0)) == tuple(colours(np.array(1.0)))


def test_a_good_part_keeps_its_look() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    below = np.full((4, 6), 4.9)
    for threshold, scale in ((5.0, (1.0, 10.0)), (None, (3.0, 30.0))):
        assert np.array_equal(np.asarray(overlay(image, below, scale, threshold)), np.asarray(image))


def test_only_the_defect_is_painted_and_framed() -> None:
    image = Image.new("L", (80, 80), 128)
    values = np.zeros((8, 8))
    values[2, 7] = 10.0
    painted = np.asarray(overlay(image, values, (2.5, 10.0), 5.0)).astype(int)
    changed = np.abs(painted - 128).max(axis=2) > 0
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 32, 67, 79)
    assert (painted[17, 67] == 20).all()
    assert (painted[18, 68] == 255).all()
    assert (painted[25, 74] != 128).any()


def test_the_picture_is_upsampled_like_torch() -> None:
    values = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    ours = np.asarray(Image.open(io.BytesIO(heatmap_png(values, (0.01, 1.0), (90, 77)))))
    tensor = torch.from_numpy(1 + np.log10(np.clip(values, 0.01, 1.0)) / 2)[None, None]
    theirs = torch.nn.functional.interpolate(tensor, (77, 90), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.abs(ours.astype(int) - colours(theirs).astype(int)).max() <= 3


def test_an_empty_colour_scale_is_refused() -> None:
    with pytest.raises(DataError, match="Calibrate"):
        heatmap_png(np.zeros((2, 2)), (1.0, 1.0), (4, 4))
