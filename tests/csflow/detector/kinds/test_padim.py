"""PaDiM against a direct computation in float64."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.config import PadimConfig
from csflow.detector.kinds.padim import Padim
from tests.csflow.detector.kinds.drawn_features import GOOD, TEST, judge, sampled, smoothed


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
    fine = smoothed(expected, 32)
    scores, maps = judge(model)
    np.testing.assert_allclose(maps, sampled(fine, 8), rtol=2e-3)
    np.testing.assert_allclose(scores, fine.max(axis=(1, 2)), rtol=2e-3)


def test_padim_draws_channels_by_the_seed() -> None:
    drawn = [Padim.fit(GOOD, PadimConfig(dimensions=4), pixels=32, seed=seed).channels.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
