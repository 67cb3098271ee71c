"""What the distance kinds share, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from csflow.config import PadimConfig, PatchcoreConfig
from csflow.detector.kinds import distances
from csflow.detector.kinds.distances import smooth
from csflow.detector.kinds.mahalanobis import Mahalanobis
from csflow.detector.kinds.nearest_neighbour import NearestNeighbour
from csflow.detector.kinds.padim import Padim
from csflow.detector.kinds.patchcore import Patchcore
from csflow.detector.model import Model, score_stored
from csflow.detector.model_file import round_to_stored
from csflow.errors import DataError
from tests.csflow.detector.kinds.drawn_features import GOOD, TEST, Images, enlarged, judge, smoothed


def test_smoothing_is_the_authors_gaussian_on_enlarged_maps() -> None:
    maps = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    for pixels in (48, 100):
        found = smooth(maps, pixels).numpy()
        np.testing.assert_allclose(found, smoothed(maps.double().numpy(), pixels), atol=1e-5)
        fine = enlarged(maps[:, None].double().numpy(), pixels)[:, 0]
        mirrored = np.stack([gaussian_filter(one, 4.0) for one in fine])  # as their codes have it
        inner = slice(16, pixels - 16)
        np.testing.assert_allclose(found[:, inner, inner], mirrored[:, inner, inner], atol=1e-5)


@pytest.mark.parametrize("fit", [Mahalanobis.fit, lambda images: Padim.fit(images, PadimConfig(), pixels=32, seed=0)])
def test_one_image_has_no_covariance(fit: object) -> None:
    with pytest.raises(DataError, match="at least 2 good images, got 1"):
        fit(Images(1))  # type: ignore[operator]


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
