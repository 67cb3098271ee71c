"""Heat-maps and overlays have one colour scale for all images."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from csflow.detector.heatmap import MARK_POSITION, ColourScale, colours, heatmap_png, overlay
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
    scale = ColourScale(0.1, 10.0, 100.0)
    pictures = [Image.open(io.BytesIO(heatmap_png(m, scale, (30, 20)))) for m in (quiet, loud)]
    assert [p.size for p in pictures] == [(30, 20)] * 2
    assert pictures[0].getpixel((0, 0)) == pictures[1].getpixel((0, 0)) == tuple(colours(np.array(1 / 4)))
    assert pictures[1].getpixel((29, 0)) == tuple(colours(np.array(1.0)))


def test_a_good_part_keeps_its_look() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    below = np.full((4, 6), 4.9)
    for threshold in (5.0, None):
        painted = overlay(image, below, ColourScale(1.0, 5.0, 10.0), threshold)
        assert np.array_equal(np.asarray(painted), np.asarray(image))


def test_only_the_defect_is_painted_and_framed() -> None:
    image = Image.new("L", (80, 80), 128)
    values = np.zeros((8, 8))
    values[2, 7] = 10.0
    painted = np.asarray(overlay(image, values, ColourScale(2.5, 5.0, 10.0), 5.0)).astype(int)
    changed = np.abs(painted - 128).max(axis=2) > 0
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 32, 67, 79)
    assert (painted[17, 67] == 20).all()
    assert (painted[18, 68] == 255).all()
    assert (painted[25, 74] != 128).any()


def test_the_picture_is_upsampled_like_torch() -> None:
    values = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    ours = np.asarray(Image.open(io.BytesIO(heatmap_png(values, ColourScale(0.01, 0.1, 1.0), (90, 77)))))
    tensor = torch.from_numpy(1 + np.log10(np.clip(values, 0.01, 1.0)) / 2)[None, None]
    theirs = torch.nn.functional.interpolate(tensor, (77, 90), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.abs(ours.astype(int) - colours(theirs).astype(int)).max() <= 3


@pytest.mark.parametrize("map_range", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)])
def test_an_empty_colour_scale_is_refused(map_range: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="Calibrate"):
        ColourScale.of(map_range, None)


def test_the_region_threshold_is_in_the_middle_whatever_the_ends() -> None:
    for map_range in ((0.5, 100.0), (0.2, 1.3), (1.0 / 100 ** (1 / 3), 100.0)):  # the last is that of csflow 0.5
        scale = ColourScale.of(map_range, 1.0)
        assert scale.positions(np.array([[map_range[0], 1.0, map_range[1]]]))[0] == pytest.approx([0, MARK_POSITION, 1])


def test_without_region_threshold_the_range_remembers_its_mark() -> None:
    assert ColourScale.of(ColourScale.range_around(3.0, 50.0), None).mark == pytest.approx(3.0)
    assert ColourScale.of((2 / 100 ** (1 / 3), 200.0), None).mark == pytest.approx(2.0)  # as csflow 0.5 stored it


def lab(colour: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert sRGB bytes ``(..., 3)`` to CIELAB (D65)."""
    s = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    f = np.where(f > (6 / 29) ** 3, np.cbrt(f), f / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    converted: npt.NDArray[np.float64] = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return converted


@pytest.mark.parametrize("grey", [0, 20, 60, 100, 128, 160, 200, 235, 255])
def test_paint_differs_from_dark_light_and_mid_grey_parts(grey: int) -> None:
    """A difference of 2.3 in CIELAB is just visible; the least of the paint is many times that."""
    part = Image.new("L", (64, 64), grey)
    for value, least in ((1.02, 12.0), (1.5, 20.0), (3.0, 25.0), (9.0, 25.0), (99.0, 25.0)):
        painted = overlay(part, np.full((4, 4), value), ColourScale(0.5, 1.0, 10.0))
        assert np.linalg.norm(lab(painted.getpixel((32, 32))) - lab([grey] * 3)) > least, value


@pytest.mark.parametrize("grey", [0, 60, 128, 200, 255])
def test_a_frame_differs_in_lightness_from_every_part(grey: int) -> None:
    """The frame is seen in black-and-white print as well, and on parts in the colours of the paint."""
    values = np.zeros((8, 8))
    values[4, 4] = 5.0
    painted = np.asarray(overlay(Image.new("L", (80, 80), grey), values, ColourScale(0.5, 1.0, 10.0), 1.0))
    lightness = lab(painted)[..., 0]
    assert np.abs(lightness - lab([grey] * 3)[0]).max() > 45


def test_violet_is_never_painted_on_a_part() -> None:
    part = Image.new("RGB", (64, 64))
    for value in np.geomspace(1.001, 200.0, 30):
        red, _, blue = overlay(part, np.full((2, 2), value), ColourScale(0.5, 1.0, 100.0), 1.0).getpixel((30, 30))
        assert red > 1.5 * blue
