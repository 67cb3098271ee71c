"""Statistics of feature channels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.flow.standardization import channel_statistics
from tests.csflow.flow.test_training import CHANNELS, Images


def test_statistics_equal_numpy() -> None:
    images = Images()
    mean, std = channel_statistics(images, batch_size=7)
    for i, level in enumerate(images.levels):
        values = level.numpy().astype(np.float64)
        np.testing.assert_allclose(mean[i], values.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std[i], values.std(axis=(0, 2, 3)), rtol=1e-9)


def test_deviations_have_a_floor() -> None:
    images = Images()
    images.levels[0][:, 2] = 4.0
    images.levels[1][:] = 4.0
    mean, std = channel_statistics(images)
    root_mean_square = std[0][[0, 1, 3, 4, 5]].square().sum().div(CHANNELS).sqrt()
    assert std[0, 2] == pytest.approx(0.01 * root_mean_square)
    assert std[1].tolist() == [1.0] * CHANNELS
    assert mean[0, 2] == 4.0
