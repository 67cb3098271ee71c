"""The tier that all runs share: fetched from, uploaded to, and never a reason to lose work."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from csflow.adapters.storage import SharedFeatures, Store
from csflow.data.manifest import Manifest
from csflow.errors import DataError, StorageError, StoreUnreachableError
from csflow.features.shared_tier import FeatureTier
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, draw, entry, shas, toy


class MemoryTier:
    """A shared tier in memory, with the failures a test asks for."""

    address = "memory"

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], bytes] = {}
        self.asked: list[str] = []
        self.fails: dict[str, StorageError] = {}
        self.puts_before_failure = 10**9

    def held(self, space: str, shas: Collection[str]) -> set[str]:
        self.call("held")
        return {sha for sha in shas if (space, sha) in self.entries}

    def get(self, space: str, sha: str) -> bytes | None:
        self.call("get")
        return self.entries.get((space, sha))

    def put(self, space: str, sha: str, entry: bytes) -> None:
        if "put" in self.fails and len(self.entries) < self.puts_before_failure:
            self.entries[space, sha] = entry
            return
        self.call("put")
        self.entries[space, sha] = entry

    def call(self, name: str) -> None:
        self.asked.append(name)
        if name in self.fails:
            raise self.fails[name]


GONE = StoreUnreachableError("the store does not answer")


class TestSharedTier:
    @pytest.fixture
    def tier(self) -> MemoryTier:
        return MemoryTier()

    def at(self, tmp_path: Path, name: str, tier: FeatureTier) -> FeatureStore:
        return FeatureStore(tmp_path / name, tier)

    def unshared(self, store: FeatureStore) -> set[str]:
        return {path.name for path in store.root.glob("*/.unshared/*")}

    def test_what_one_run_computed_another_fetches(
        self, tmp_path: Path, images: Manifest, tier: MemoryTier, capsys: pytest.CaptureFixture[str]
    ) -> None:
        backbone = toy()
        first = self.at(tmp_path, "a", tier).extract(images, FEATURES, backbone)
        assert (first.extracted, len(tier.entries)) == (11, 11)
        store = self.at(tmp_path, "b", tier)
        plan = store.plan(images, FEATURES, backbone)
        assert (plan.missing, set(plan.shared)) == ({}, set(shas(images)))
        assert not store.root.exists() or not list(store.root.iterdir())
        second = store.extract(images, FEATURES, backbone)
        assert second.extracted == 0
        assert second.digest == first.digest
        assert "fetch features: 11/11" in capsys.readouterr().err
        for sha in shas(images):
            assert entry(second, sha).read_bytes() == entry(first, sha).read_bytes()
        tier.asked.clear()
        assert store.extract(images, FEATURES, backbone).extracted == 0
        assert tier.asked == []

    def test_only_the_rest_is_computed_and_put_there(self, tmp_path: Path, tier: MemoryTier) -> None:
        backbone = toy()
        self.at(tmp_path, "a", tier).extract(draw(tmp_path / "images", range(5)), FEATURES, backbone)
        store = self.at(tmp_path, "b", tier)
        grown = draw(tmp_path / "images", range(8))
        assert store.extract(grown, FEATURES, backbone).extracted == 3
        assert {sha for _, sha in tier.entries} == set(shas(grown))
        assert self.unshared(store) == set()

    def test_a_damaged_entry_there_is_computed_and_replaced(self, tmp_path: Path, tier: MemoryTier) -> None:
        backbone, images = toy(), draw(tmp_path / "images", range(4))
        self.at(tmp_path, "a", tier).extract(images, FEATURES, backbone)
        sound = dict(tier.entries)
        (one, other, *_) = sorted(tier.entries)
        tier.entries[one] = tier.entries[other]
        tier.entries[other] = tier.entries[other][:-1]
        assert self.at(tmp_path, "b", tier).extract(images, FEATURES, backbone).extracted == 2
        assert len(tier.entries[one]) == len(sound[one])
        assert self.at(tmp_path, "c", tier).extract(images, FEATURES, backbone).extracted == 0

    def test_a_tier_that_does_not_answer_costs_time_only(
        self, tmp_path: Path, images: Manifest, tier: MemoryTier, capsys: pytest.CaptureFixture[str]
    ) -> None:
        backbone = toy()
        self.at(tmp_path, "a", tier).extract(images, FEATURES, backbone)
        for broken in ({"held": GONE}, {"get": GONE}, {"get": StorageError("denied")}):
            tier.fails = dict(broken)
            cached = self.at(tmp_path, str(broken), tier).extract(images, FEATURES, backbone)
            assert cached.extracted == 11
            assert len(cached.open(shas(images))) == 11
            said = capsys.readouterr().err
            assert str(next(iter(broken.values()))) in said
            assert "computed here" in said

    def test_a_tier_that_refuses_ends_the_step_before_anything_is_computed(
        self, tmp_path: Path, images: Manifest, tier: MemoryTier
    ) -> None:
        tier.fails = {"held": StorageError("wrong credentials")}
        with pytest.raises(StorageError, match="wrong credentials"):
            self.at(tmp_path, "a", tier).extract(images, FEATURES, toy())
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize("error", [GONE, StorageError("denied")])
    def test_what_could_not_be_put_there_is_safe_and_brought_later(
        self,
        tmp_path: Path,
        images: Manifest,
        tier: MemoryTier,
        capsys: pytest.CaptureFixture[str],
        error: StorageError,
    ) -> None:
        store, backbone = self.at(tmp_path, "a", tier), toy()
        tier.fails, tier.puts_before_failure = {"put": error}, 4
        cached = store.extract(images, FEATURES, backbone)
        assert (cached.extracted, len(cached.open(shas(images)))) == (11, 11)
        assert len(tier.entries) == 4
        assert self.unshared(store) == set(shas(images)) - {sha for _, sha in tier.entries}
        said = capsys.readouterr().err
        assert str(error) in said
        assert "7 computed entries are safe in" in said
        tier.fails = {}
        assert store.extract(images, FEATURES, backbone).extracted == 0
        assert len(tier.entries) == 11
        assert self.unshared(store) == set()

    def test_what_a_killed_extraction_noted_but_lost_is_struck_off(
        self, tmp_path: Path, images: Manifest, tier: MemoryTier
    ) -> None:
        store, backbone = self.at(tmp_path, "a", tier), toy()
        cached = store.extract(images, FEATURES, backbone)
        (tmp_path / "a" / cached.space / ".unshared" / ("f" * 64)).touch()
        store.extract(images, FEATURES, backbone)
        assert self.unshared(store) == set()
        assert len(tier.entries) == 11

    def test_work_before_a_failure_is_shared(self, tmp_path: Path, images: Manifest, tier: MemoryTier) -> None:
        images.files[9].write_bytes(b"broken")
        with pytest.raises(DataError, match=r"9\.png has changed"):
            self.at(tmp_path, "a", tier).extract(images, FEATURES, toy(), batch_size=4)
        assert len(tier.entries) == 9

    def test_use_is_what_the_time_of_an_entry_says(self, store: FeatureStore, images: Manifest) -> None:
        cached = store.extract(images, FEATURES, toy())
        for sha in shas(images):
            os.utime(entry(cached, sha), (1e9, 1e9))
        store.extract(Manifest(images.frame.iloc[:3], images.root), FEATURES, toy())
        fresh = {sha for sha in shas(images) if entry(cached, sha).stat().st_mtime > 1e9}
        assert fresh == set(shas(images)[:3])

    def test_through_a_real_store(self, tmp_path: Path, images: Manifest, bucket: str) -> None:
        shared, backbone = SharedFeatures(Store(bucket, "plant")), toy()
        first = self.at(tmp_path, "a", shared).extract(images, FEATURES, backbone)
        again = self.at(tmp_path, "b", shared).extract(images, FEATURES, backbone)
        assert (first.extracted, again.extracted) == (11, 0)
        keys = {stored.key for stored in shared.store.list("features/")}
        assert keys == {f"features/{first.space}/{sha[:2]}/{sha}" for sha in shas(images)}
        for level, right in zip(again.open(shas(images))[4], first.open(shas(images))[4], strict=True):
            torch.testing.assert_close(level, right, rtol=0, atol=0)
