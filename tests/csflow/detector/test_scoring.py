"""Scores, maps, p-values, boxes and heat-maps against plain formulas and independent implementations."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from csflow.detector.boxes import Box, boxes_in_image, defect_boxes
from csflow.detector.heatmap import colours, heatmap_png, overlay
from csflow.detector.p_values import p_values
from csflow.detector.scoring import anomaly_map, anomaly_score
from csflow.errors import DataError


@pytest.fixture
def latents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, side, side, generator=generator) for side in (8, 4, 2)]


def test_the_score_is_the_mean_of_half_the_square_over_all_latents(latents: list[torch.Tensor]) -> None:
    flat = torch.cat([level.flatten(1) for level in latents], dim=1)
    torch.testing.assert_close(anomaly_score(latents), (flat**2 / 2).mean(dim=1))


def test_score_and_map_of_an_image_ignore_the_rest_of_the_batch(latents: list[torch.Tensor]) -> None:
    alone = [level[1:2] for level in latents]
    torch.testing.assert_close(anomaly_score(alone)[0], anomaly_score(latents)[1])
    torch.testing.assert_close(anomaly_map(alone)[0], anomaly_map(latents)[1])


def test_half_precision_latents_are_summed_in_float32() -> None:
    latents = [torch.full((1, 64, 32, 32), 8.0, dtype=torch.float16)]
    assert anomaly_score(latents).item() == 32.0
    assert anomaly_map(latents).max().item() == 4096.0


def test_the_map_is_the_squared_norm_of_the_finest_level(latents: list[torch.Tensor]) -> None:
    plain = anomaly_map(latents)
    assert plain.shape == (3, 1, 8, 8)
    torch.testing.assert_close(plain[:, 0], torch.linalg.vector_norm(latents[0], dim=1) ** 2)
    assert anomaly_map(latents, (33, 20)).shape == (3, 1, 33, 20)


def test_p_values_count_ties_as_at_least_as_extreme() -> None:
    known = [1.0, 2.0, 2.0, 3.0]
    assert p_values([0.0, 2.0, 3.0, 4.0], known).tolist() == [1.0, 0.8, 0.4, 0.2]


def test_p_values_match_the_definition_and_are_super_uniform() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.normal(size=99), rng.normal(size=500)
    expected = [(1 + sum(k >= s for k in known)) / 100 for s in new]
    assert np.allclose(p_values(new, known), expected)
    draws = np.array([p_values(rng.normal(), rng.normal(size=19)) for _ in range(2000)])
    assert stats.binomtest(int((draws <= 0.1).sum()), 2000, 0.1, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize(("scores", "known"), [([np.nan], [1.0]), ([1.0], [np.nan]), ([1.0], [])])
def test_p_values_refuse_what_is_no_number(scores: list[float], known: list[float]) -> None:
    with pytest.raises(DataError, match="numbers"):
        p_values(scores, known)


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
