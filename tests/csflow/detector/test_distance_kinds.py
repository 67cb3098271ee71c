"""Comparison detectors against scikit-learn, SciPy and direct float64 computations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from csflow.config import PadimConfig, PatchcoreConfig
from csflow.detector.kinds import distances
from csflow.detector.kinds.distances import smooth
from csflow.detector.kinds.mahalanobis import Mahalanobis
from csflow.detector.kinds.nearest_neighbour import NearestNeighbour
from csflow.detector.kinds.padim import Padim
from csflow.detector.kinds.patchcore import Patchcore, farthest_first
from csflow.detector.model import Model, round_to_stored, score_stored
from csflow.errors import DataError
from csflow.flow.pyramid import Pyramid

SIZES = ((6, 8), (5, 4), (5, 2))


class Images:
    """Features of random images with correlated channels, from memory."""

    def __init__(self, count: int, seed: int = 0, offset: float = 20.0) -> None:
        draw = np.random.default_rng(seed)
        self.levels = []
        for channels, side in SIZES:
            mixing = np.random.default_rng(side).standard_normal((channels, channels))
            noise = draw.standard_normal((count, side, side, channels)) @ mixing + offset
            self.levels.append(torch.from_numpy(noise.transpose(0, 3, 1, 2).astype(np.float32)))

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        return [level[list(indices)] for level in self.levels]

    @property
    def all(self) -> Pyramid:
        return self.levels

    @property
    def pooled(self) -> np.ndarray:
        return np.concatenate([level.double().numpy().mean(axis=(2, 3)) for level in self.levels], axis=1)

    @property
    def joined(self) -> np.ndarray:
        """``(n, D, h, w)`` in float64, every level enlarged by an independent bilinear filter."""
        side = SIZES[0][1]
        return np.concatenate([_enlarged(level.double().numpy(), side) for level in self.levels], axis=1)


def _enlarged(maps: np.ndarray, side: int) -> np.ndarray:
    places = (np.arange(side) + 0.5) * maps.shape[2] / side - 0.5
    weights = np.clip(1 - np.abs(np.clip(places, 0, maps.shape[2] - 1)[:, None] - np.arange(maps.shape[2])), 0, None)
    return np.einsum("yi,xj,ncij->ncyx", weights, weights, maps)


GOOD, TEST = Images(40), Images(9, seed=1)


def judge(model: Model, images: Images = TEST) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        scores, maps = model(images.all)
    return scores.numpy(), maps.numpy()


def test_nearest_neighbour_equals_scikit_learn() -> None:
    expected, _ = NearestNeighbors(n_neighbors=1).fit(GOOD.pooled).kneighbors(TEST.pooled)
    scores, maps = judge(NearestNeighbour.fit(GOOD))
    np.testing.assert_allclose(scores, expected[:, 0], rtol=1e-4)
    places = TEST.joined.transpose(0, 2, 3, 1).reshape(-1, 16)
    by_place, _ = NearestNeighbors(n_neighbors=1).fit(GOOD.pooled).kneighbors(places)
    np.testing.assert_allclose(maps.ravel(), by_place[:, 0], rtol=1e-4)


def test_a_good_image_is_its_own_nearest_neighbour() -> None:
    scores, _ = judge(NearestNeighbour.fit(GOOD), GOOD)
    assert np.isfinite(scores).all()
    assert scores.max() == 0.0


def test_mahalanobis_equals_scikit_learn() -> None:
    oracle = LedoitWolf().fit(GOOD.pooled)
    scores, maps = judge(Mahalanobis.fit(GOOD))
    np.testing.assert_allclose(scores**2, oracle.mahalanobis(TEST.pooled), rtol=1e-3)
    places = TEST.joined.transpose(0, 2, 3, 1).reshape(-1, 16)
    np.testing.assert_allclose(maps.ravel() ** 2, oracle.mahalanobis(places), rtol=1e-3)


@pytest.mark.parametrize("dimensions", [4, 100])
def test_padim_equals_a_direct_computation(dimensions: int) -> None:
    model = Padim.fit(GOOD, PadimConfig(dimensions=dimensions), pixels=32, seed=3)
    kept = model.channels.numpy()
    assert len(kept) == min(dimensions, 16)
    assert (np.diff(kept) > 0).all()
    good, test = GOOD.joined[:, kept], TEST.joined[:, kept]
    expected = np.empty((9, 8, 8))
    for y in range(8):
        for x in range(8):
            covariance = np.cov(good[:, :, y, x].T) + 0.01 * np.eye(len(kept))
            centred = test[:, :, y, x] - good[:, :, y, x].mean(axis=0)
            expected[:, y, x] = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred))
    fine = _smoothed(expected, 32)
    scores, maps = judge(model)
    np.testing.assert_allclose(maps, _sampled(fine, 8), rtol=2e-3)
    np.testing.assert_allclose(scores, fine.max(axis=(1, 2)), rtol=2e-3)


def test_padim_draws_channels_by_the_seed() -> None:
    drawn = [Padim.fit(GOOD, PadimConfig(dimensions=4), pixels=32, seed=seed).channels.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def _patches(images: Images) -> np.ndarray:
    """Mean over each place and those of its neighbours that exist, ``(n, h w, D)``."""
    levels = []
    for level in images.levels:
        values = level.double().numpy()
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        side = values.shape[2]
        shifted = [padded[:, :, y : y + side, x : x + side] for y in range(3) for x in range(3)]
        levels.append(_enlarged(np.nanmean(shifted, axis=0), SIZES[0][1]))
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
    np.testing.assert_allclose(maps, _sampled(_smoothed(nearest.reshape(9, 8, 8), 256), 8), rtol=1e-3)


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


def test_smoothing_is_the_authors_gaussian_on_enlarged_maps() -> None:
    maps = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    for pixels in (48, 100):
        found = smooth(maps, pixels).numpy()
        np.testing.assert_allclose(found, _smoothed(maps.double().numpy(), pixels), atol=1e-5)
        enlarged = _enlarged(maps[:, None].double().numpy(), pixels)[:, 0]
        mirrored = np.stack([gaussian_filter(one, 4.0) for one in enlarged])  # as their codes have it
        inner = slice(16, pixels - 16)
        np.testing.assert_allclose(found[:, inner, inner], mirrored[:, inner, inner], atol=1e-5)


def _smoothed(maps: np.ndarray, pixels: int) -> np.ndarray:
    enlarged = _enlarged(maps[:, None], pixels)[:, 0]
    return np.stack([gaussian_filter(one, 4.0, mode="nearest", truncate=4.0) for one in enlarged])


def _sampled(maps: np.ndarray, side: int) -> np.ndarray:
    """Read between pixels at the middle of every place."""
    at = (np.arange(side) + 0.5) * maps.shape[1] / side - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    return np.stack([map_coordinates(one, grid, order=1, mode="nearest") for one in maps])


@pytest.mark.parametrize("fit", [Mahalanobis.fit, lambda images: Padim.fit(images, PadimConfig(), pixels=32, seed=0)])
def test_one_image_has_no_covariance(fit: object) -> None:
    with pytest.raises(DataError, match="at least 2 good images, got 1"):
        fit(Images(1))  # type: ignore[operator]


@pytest.mark.parametrize("count", [2, 5])
def test_copies_of_one_image_have_no_covariance(count: int) -> None:
    images = Images(1)
    images.levels = [level.repeat(count, 1, 1, 1) for level in images.levels]
    with pytest.raises(DataError, match=f"of {count} good images, 1 of them different, has no inverse"):
        Mahalanobis.fit(images)


def test_a_model_lies_where_its_buffers_lie() -> None:
    """Mahalanobis has no parameters."""
    moved = Mahalanobis.fit(GOOD).to("meta").on([torch.zeros(1, 6, 8, 8)])
    assert moved[0].device.type == "meta"


def test_patchcore_compares_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Patchcore.fit(GOOD, PatchcoreConfig(coreset=1.0), pixels=256, seed=0)
    whole, maps = score_stored(model, TEST)
    rows: list[int] = []
    least = distances._least

    def noted(vectors: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows.append(len(memory))
        return least(vectors, memory)

    monkeypatch.setattr(distances, "_least", noted)
    monkeypatch.setattr(distances, "BLOCK", 100)
    blocks, block_maps = score_stored(model, TEST)
    assert max(rows) == 100
    assert sum(rows) == len(model.memory)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
    np.testing.assert_allclose(block_maps, maps, rtol=1e-5)


def test_large_maps_are_scored_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mahalanobis.fit(GOOD)
    whole, _ = score_stored(model, TEST)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0][0])))
    monkeypatch.setattr("csflow.detector.model.PLACES", 2 * 64)
    portions, _ = score_stored(model, TEST)
    assert sizes == [2, 2, 2, 2, 1]
    np.testing.assert_allclose(portions, whole, rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        NearestNeighbour.fit(GOOD),
        Mahalanobis.fit(GOOD),
        Padim.fit(GOOD, PadimConfig(), pixels=32, seed=0),
        Patchcore.fit(GOOD, PatchcoreConfig(), pixels=32, seed=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_half_precision_hardly_changes_a_score(model: Model) -> None:
    before, _ = judge(model)
    round_to_stored(model)
    after, _ = judge(model)
    np.testing.assert_allclose(after, before, rtol=0.01)
