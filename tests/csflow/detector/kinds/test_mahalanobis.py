"""Mahalanobis against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from csflow.detector.kinds.mahalanobis import Mahalanobis
from csflow.errors import DataError
from tests.csflow.detector.kinds.drawn_features import GOOD, TEST, Images, judge


def test_mahalanobis_equals_scikit_learn() -> None:
    oracle = LedoitWolf().fit(GOOD.pooled)
    scores, maps = judge(Mahalanobis.fit(GOOD))
    np.testing.assert_allclose(scores**2, oracle.mahalanobis(TEST.pooled), rtol=1e-3)
    places = TEST.joined.transpose(0, 2, 3, 1).reshape(-1, 16)
    np.testing.assert_allclose(maps.ravel() ** 2, oracle.mahalanobis(places), rtol=1e-3)


@pytest.mark.parametrize("count", [2, 5])
def test_copies_of_one_image_have_no_covariance(count: int) -> None:
    images = Images(1)
    images.levels = [level.repeat(count, 1, 1, 1) for level in images.levels]
    with pytest.raises(DataError, match=f"of {count} good images, 1 of them different, has no inverse"):
        Mahalanobis.fit(images)
