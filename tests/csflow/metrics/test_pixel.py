"""Pixel metrics against scikit-learn and a slow sweep over every threshold, and what binning may cost."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from csflow.errors import DataError
from csflow.metrics import pixel_auroc
from csflow.scoring import upsample


@pytest.mark.parametrize("digits", [0, 6])
def test_pixel_auroc_equals_scikit_learn_on_all_pixels(digits: int) -> None:
    rng = np.random.default_rng(digits)
    sizes = [(37, 50), (64, 20), (5, 5)]
    masks = [rng.random(size) < share for size, share in zip(sizes, (0.1, 0.0, 1.0), strict=True)]
    maps = [np.round(rng.gamma(2.0, size=(6, 8)), digits).astype(np.float32) for _ in sizes]
    large = [upsample(m, (w, h)) for m, (h, w) in zip(maps, sizes, strict=True)]
    theirs = oracle.roc_auc_score(
        np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in large])
    )
    assert pixel_auroc(maps, masks) == pytest.approx(theirs, abs=1e-12)


def test_pixel_ties_count_half() -> None:
    assert pixel_auroc([np.ones((2, 2))], [np.eye(2, dtype=bool)]) == 0.5


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [([np.ones((2, 2))], [np.zeros((4, 4), dtype=bool)], "got 0 and 16"), ([], [], "got 0 and 0"),
     ([np.ones((2, 2))], [np.ones((4, 4), dtype=bool)], "got 16 and 0"), ([np.ones((2, 2))], [], "one mask"),
     ([np.full((2, 2), np.nan)], [np.eye(4, dtype=bool)], "NaN")],
)  # fmt: skip
def test_unusable_pixels_are_named(maps: list[np.ndarray], masks: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pixel_auroc(maps, masks)
