"""Features are drawn blindly and judged as scipy judges them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from csflow.errors import DataError
from csflow.reporting.normality import (
    FeatureSample,
    fit_normal,
    judge_normality,
    normal_limit,
    representative,
    sample_features,
)

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values", [DRAW.normal(size=80), DRAW.gamma(1.0, size=81), np.repeat([0.0, 1.0], 30), np.array([3.0, 3.0, 9.0])]
)
def test_the_distance_is_scipys(values: np.ndarray) -> None:
    fit = fit_normal(np.stack([values, values * 5 + 2], axis=1))
    expected = stats.kstest(values, "norm", args=(values.mean(), values.std())).statistic
    assert fit.distance == pytest.approx([expected, expected])  # where and how wide does not matter
    assert (fit.mean[0], fit.deviation[0]) == pytest.approx(stats.norm.fit(values))


def test_a_constant_feature_is_as_far_from_normal_as_can_be() -> None:
    fit = fit_normal(np.full((5, 1), 2.0))
    assert (fit.mean[0], fit.deviation[0], fit.distance[0]) == (2.0, 0.0, 1.0)


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((1, 3)), np.array([[1.0], [np.nan]]), np.zeros((0, 2))])
def test_what_cannot_be_fitted_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="normal fit"):
        fit_normal(values)


@pytest.mark.parametrize("images", [20, 100, 800])
def test_95_percent_of_normal_features_stay_below_the_limit(images: int) -> None:
    fit = fit_normal(np.random.default_rng(images).normal(size=(images, 4000)))
    assert (fit.distance < normal_limit(images)).mean() == pytest.approx(0.95, abs=0.012)


def test_the_verdict_counts_what_is_not_normal() -> None:
    draw = np.random.default_rng(4)
    values = np.concatenate([draw.normal(size=(500, 30)), draw.exponential(size=(500, 70))], axis=1)
    found = judge_normality(FeatureSample(values, tuple(map(str, range(100)))))
    assert found.share == pytest.approx(0.7 + 0.05 * 0.3, abs=0.05)
    assert found.shown[0] == found.fit.distance.argmin()
    assert found.shown[-1] == found.fit.distance.argmax()
    assert found.fit.only([3, 1]).mean == pytest.approx(values.mean(axis=0)[[3, 1]])


def test_panels_are_at_equal_steps_of_rank() -> None:
    assert representative([0.5, 0.1, 0.3, 0.2, 0.4], panels=3) == [1, 2, 0]
    assert representative([0.2, 0.1], panels=6) == [1, 0]


def test_features_are_read_from_the_place_they_name() -> None:
    pyramids = [[torch.randn(3, 4, 5), torch.randn(3, 2, 2)] for _ in range(4)]
    sample = sample_features(pyramids, count=50)
    assert sample.values.shape == (4, 50)
    assert len(set(sample.names)) == 50
    for column, name in enumerate(sample.names):
        scale, channel, row, place = (int(part.split()[-1]) for part in name.split(", "))
        expected = [float(pyramid[scale][channel, row, place]) for pyramid in pyramids]
        assert sample.values[:, column] == pytest.approx(expected)
    assert sample_features(pyramids, count=50).names == sample.names
    assert sample_features(pyramids, count=10**6).values.shape == (4, 72)


def test_no_images_have_no_features() -> None:
    with pytest.raises(DataError, match="at least one image"):
        sample_features([])
