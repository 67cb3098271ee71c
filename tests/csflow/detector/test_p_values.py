"""Conformal p-values count what is at least as extreme, and never promise too much."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csflow.detector.p_values import p_values
from csflow.errors import DataError


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
