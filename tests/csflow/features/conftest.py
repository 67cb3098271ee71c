"""A feature store and images to fill it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.data.manifest import Manifest
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import draw


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def images(tmp_path: Path) -> Manifest:
    return draw(tmp_path / "images", range(11))
