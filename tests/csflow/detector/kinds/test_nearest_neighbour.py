"""1-NN against scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from csflow.detector.kinds.nearest_neighbour import NearestNeighbour
from tests.csflow.detector.kinds.drawn_features import GOOD, TEST, judge


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
