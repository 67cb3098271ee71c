"""A tiny backbone and drawn images, for tests of the feature store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from csflow.config import FeatureConfig
from csflow.data.manifest import Manifest
from csflow.features.backbone import Backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.system.files import sha256_file

FEATURES = FeatureConfig(image_size=64, scales=3, stage=2)


def toy(seed: int = 0, gain: float = 1.0) -> Backbone:
    """Six channels at stride 8, without timm."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.conv_stem = nn.Conv2d(3, 4, 3, 2, 1)
    model.bn1 = nn.BatchNorm2d(4)
    model.blocks = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1))
    with torch.no_grad():
        model.blocks[1].weight.mul_(gain)
    return Backbone(model, name="toy", stages=(2,), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def draw(root: Path, indices: range) -> Manifest:
    """A manifest of small noise images ``INDEX.png``."""
    root.mkdir(parents=True, exist_ok=True)
    for index in indices:
        values = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"{index}.png")
    return table(root, [f"{index}.png" for index in indices])


def table(root: Path, names: list[str]) -> Manifest:
    return Manifest(pd.DataFrame({"path": names, "sha256": [sha256_file(root / name) for name in names]}), root)


def shas(manifest: Manifest) -> list[str]:
    return list(manifest.frame["sha256"])


def entry(cached: CacheManifest, sha: str) -> Path:
    return cached.store / cached.space / sha[:2] / sha
