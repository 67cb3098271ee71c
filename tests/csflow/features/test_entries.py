"""Entries of a feature space: damage is found and repaired."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csflow.data.manifest import Manifest
from csflow.errors import CacheError
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, entry, shas, toy


class TestDamage:
    def damage(self, path: Path, how: str) -> None:
        content = bytearray(path.read_bytes())
        if how == "flipped":
            content[-5] ^= 1
        elif how == "header":
            content[9] ^= 1
        elif how == "truncated":
            content = content[: len(content) // 2]
        elif how == "empty":
            content = bytearray()
        path.unlink()
        if how != "missing":
            path.write_bytes(content)

    @pytest.mark.parametrize("how", ["flipped", "header", "truncated", "empty", "missing"])
    def test_is_found_and_repaired(self, store: FeatureStore, images: Manifest, how: str) -> None:
        backbone = toy()
        cached = store.extract(images, FEATURES, backbone)
        before = cached.open(shas(images)).batch(range(11))
        path = entry(cached, shas(images)[4])
        self.damage(path, how)
        with pytest.raises(CacheError, match=rf"{path.name}.*Extract the features again"):
            cached.open(shas(images))
        assert len(cached.open(shas(images)[5:])) == 6
        repaired = store.extract(images, FEATURES, backbone)
        assert repaired.extracted == 1
        for level, right in zip(repaired.open(shas(images)).batch(range(11)), before, strict=True):
            torch.testing.assert_close(level, right, rtol=2e-3, atol=1e-4)

    def test_entry_of_another_image_is_found(self, store: FeatureStore, images: Manifest) -> None:
        cached = store.extract(images, FEATURES, toy())
        one, other = (entry(cached, sha) for sha in shas(images)[:2])
        one.write_bytes(other.read_bytes())
        with pytest.raises(CacheError, match=f"{one.name} are damaged: wrong checksum"):
            cached.open(shas(images))

    def test_entry_that_vanishes_after_opening(self, store: FeatureStore, images: Manifest) -> None:
        cached = store.extract(images, FEATURES, toy())
        opened = cached.open(shas(images))
        entry(cached, shas(images)[4]).unlink()
        with pytest.raises(CacheError, match=rf"Cannot map features .*{shas(images)[4]}"):
            opened[4]

    def test_unknown_image(self, store: FeatureStore, images: Manifest) -> None:
        with pytest.raises(CacheError, match="Image beef is not among the 11"):
            store.extract(images, FEATURES, toy()).open(["beef"])
