"""A cache manifest survives JSON and a move of the store, and notices edits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.data.manifest import Manifest
from csflow.errors import CacheError
from csflow.features.cache_manifest import CacheManifest
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, shas, toy
from tests.damage import damages, inflict


class TestManifest:
    @pytest.fixture
    def cached(self, store: FeatureStore, images: Manifest) -> CacheManifest:
        return store.extract(images, FEATURES, toy())

    def test_survives_json(self, cached: CacheManifest, images: Manifest, tmp_path: Path) -> None:
        cached.save(tmp_path / "run" / "cache.json")
        loaded = CacheManifest.load(tmp_path / "run" / "cache.json")
        assert loaded == cached
        assert (loaded.channels, loaded.scales, loaded.digest) == (6, 3, cached.digest)
        assert loaded.shapes == ((6, 8, 8), (6, 4, 4), (6, 2, 2))
        assert len(loaded.open(shas(images))) == 11

    def test_store_may_move(self, cached: CacheManifest, images: Manifest, tmp_path: Path) -> None:
        cached.save(tmp_path / "cache.json")
        cached.store.rename(tmp_path / "elsewhere")
        moved = CacheManifest.load(tmp_path / "cache.json", store=tmp_path / "elsewhere")
        assert moved.digest == cached.digest
        assert len(moved.open(shas(images))) == 11

    def test_relative_store_is_saved_where_it_is(
        self, images: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        FeatureStore(Path("features")).extract(images, FEATURES, toy()).save(Path("run/cache.json"))
        monkeypatch.chdir("/")
        assert len(CacheManifest.load(tmp_path / "run/cache.json").open(shas(images))) == 11

    def test_digest_follows_the_images(self, store: FeatureStore, images: Manifest) -> None:
        fewer = Manifest(images.frame.iloc[1:], images.root)
        shuffled = Manifest(images.frame.iloc[::-1], images.root)
        digests = [store.extract(part, FEATURES, toy()).digest for part in (images, fewer, shuffled)]
        assert digests[0] == digests[2] != digests[1]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (None, "is missing"),
            ("{", "is damaged"),
            ("[]", "it holds list, expected an object"),
            ('{"store": "x"}', "is no cache manifest"),
        ],
    )
    def test_no_manifest(self, tmp_path: Path, content: str | None, expected: str) -> None:
        if content is not None:
            (tmp_path / "cache.json").write_text(content)
        with pytest.raises(CacheError, match=rf"cache\.json.* {expected}.*Extract the features again"):
            CacheManifest.load(tmp_path / "cache.json")

    @pytest.mark.parametrize("has_seal", [True, False], ids=["sealed", "of an older csflow"])
    def test_edited(self, cached: CacheManifest, tmp_path: Path, has_seal: bool) -> None:
        path = tmp_path / "cache.json"
        cached.save(path)
        if not has_seal:
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "seal"}))
            assert CacheManifest.load(path) == cached
        path.write_text(path.read_text().replace(cached.entries[0], "0" * 64))
        with pytest.raises(CacheError, match="is damaged: its SHA-256" if has_seal else "its digest does not match"):
            CacheManifest.load(path)

    def test_every_damage_is_seen(self, cached: CacheManifest, tmp_path: Path) -> None:
        """The digest alone would not see other shapes, or another store."""
        path = tmp_path / "cache.json"
        cached.save(path)
        for damage, content in damages(path.read_bytes(), flips=200):
            inflict(path, content)
            try:
                found = CacheManifest.load(path)
            except CacheError:
                continue
            assert (found, found.store) == (cached, cached.store), damage
