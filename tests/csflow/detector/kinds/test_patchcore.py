"""PatchCore against a direct computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csflow.config import PatchcoreConfig
from csflow.detector.kinds.patchcore import Patchcore, farthest_first
from tests.csflow.detector.kinds.drawn_features import GOOD, SIZES, TEST, Images, enlarged, judge, sampled, smoothed


def _patches(images: Images) -> np.ndarray:
    """Mean over each place and those of its neighbours that exist, ``(n, h w, D)``."""
    levels = []
    for level in images.levels:
        values = level.double().numpy()
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        side = values.shape[2]
        shifted = [padded[:, :, y : y + side, x : x + side] for y in range(3) for x in range(3)]
        levels.append(enlarged(np.nanmean(shifted, axis=0), SIZES[0][1]))
    return np.concatenate(levels, axis=1).reshape(len(images), 16, -1).transpose(0, 2, 1)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_patchcore_with_all_patches_equals_a_direct_computation(neighbours: int) -> None:
    model = Patchcore.fit(GOOD, PatchcoreConfig(coreset=1.0, neighbours=neighbours), pixels=256, seed=0)
    memory, patches = _patches(GOOD).reshape(-1, 16), _patches(TEST)
    assert len(model.memory) == len(memory)
    distances = np.linalg.norm(patches[:, :, None] - memory[None, None], axis=3)
    nearest = distances.min(axis=2)
    expected = nearest.max(axis=1)
    if neighbours > 1:
        for image, place in enumerate(nearest.argmax(axis=1)):
            around = np.argsort(np.linalg.norm(memory - memory[distances[image, place].argmin()], axis=1))[:neighbours]
            reach = np.exp(distances[image, place, around])
            expected[image] *= 1 - reach[0] / reach.sum()
    scores, maps = judge(model)
    np.testing.assert_allclose(scores, expected, rtol=1e-3)
    np.testing.assert_allclose(maps, sampled(smoothed(nearest.reshape(9, 8, 8), 256), 8), rtol=1e-3)


def test_patchcore_keeps_no_more_than_asked() -> None:
    assert len(Patchcore.fit(GOOD, PatchcoreConfig(coreset=0.1), pixels=32, seed=0).memory) == 256
    assert len(Patchcore.fit(GOOD, PatchcoreConfig(coreset=0.1, largest=7), pixels=32, seed=0).memory) == 7


def test_patchcore_draws_candidates_from_every_image_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csflow.detector.kinds.patchcore.CANDIDATES", 200)
    good = Images(40)
    for index in range(40):
        good.levels[0][index] = 100.0 * index
    model = Patchcore.fit(good, PatchcoreConfig(coreset=1.0, neighbours=1), pixels=256, seed=0)
    image_of = torch.round((model.memory + model.centre)[:, 0] / 100).long()
    assert torch.bincount(image_of, minlength=40).tolist() == [5] * 40


def test_farthest_first_is_the_greedy_choice() -> None:
    points = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    chosen = farthest_first(points, 25, np.random.default_rng(4)).tolist()
    values = points.double().numpy()
    expected = chosen[:1]
    while len(expected) < 25:
        gaps = np.linalg.norm(values[:, None] - values[expected][None], axis=2).min(axis=1)
        expected.append(int(gaps.argmax()))
    assert chosen == expected


def test_farthest_first_never_takes_a_point_twice() -> None:
    points = torch.zeros(10, 3)
    assert sorted(farthest_first(points, 10, np.random.default_rng(0)).tolist()) == list(range(10))


def test_a_projection_keeps_far_points_far() -> None:
    """More dimensions than are compared: three clusters far apart all get a point."""
    points = torch.randn(90, 400, generator=torch.Generator().manual_seed(0))
    points[:30] += 100
    points[30:60] -= 100
    assert {place // 30 for place in farthest_first(points, 3, np.random.default_rng(0)).tolist()} == {0, 1, 2}
