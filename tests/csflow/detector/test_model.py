"""A model scores stored features a few images at a time, on its own device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csflow.detector.kinds.mahalanobis import Mahalanobis
from csflow.detector.model import score_stored
from tests.csflow.detector.kinds.drawn_features import GOOD, TEST


def test_a_pyramid_moves_to_the_device_of_the_buffers() -> None:
    """Mahalanobis has no parameters."""
    moved = Mahalanobis.fit(GOOD).to("meta").on([torch.zeros(1, 6, 8, 8)])
    assert moved[0].device.type == "meta"


def test_large_maps_are_scored_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mahalanobis.fit(GOOD)
    whole, _ = score_stored(model, TEST)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0][0])))
    monkeypatch.setattr("csflow.detector.model._POSITIONS", 2 * 64)
    portions, _ = score_stored(model, TEST)
    assert sizes == [2, 2, 2, 2, 1]
    np.testing.assert_allclose(portions, whole, rtol=1e-5)
