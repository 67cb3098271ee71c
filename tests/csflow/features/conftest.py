"""A feature store with images to fill it, and the default trunk with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.config import FeatureConfig
from csflow.data.manifest import Manifest
from csflow.features.backbone import Backbone, load_backbone, save_trunk
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import draw


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def images(tmp_path: Path) -> Manifest:
    return draw(tmp_path / "images", range(11))


@pytest.fixture(scope="package")
def backbone() -> Backbone:
    return load_backbone(FeatureConfig())


@pytest.fixture(scope="package")
def trunk_file(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    save_trunk(backbone, path)
    return path
