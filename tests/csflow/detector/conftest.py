"""Images and a feature store that the tests of detectors share."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from csflow.data.manifest import Manifest, build_manifest
from csflow.features.store import FeatureStore
from tests.csflow.detector.small_line import line_of


@pytest.fixture(scope="package")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("line")
    draw = np.random.default_rng(0)
    for folder, count in (("train/good", 12), ("test/good", 3)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(128 + 40 * draw.standard_normal((9, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(root / folder / f"{number}.png")
    return build_manifest(root, line="small", roles=line_of("csflow").roles)


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("store"))
