"""The feature store: incremental, self-repairing, safe for several processes, and the same values everywhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from csflow.adapters.storage import SharedFeatures, Store
from csflow.config import FeatureConfig
from csflow.data.images import read_image, to_pyramid_inputs
from csflow.data.manifest import Manifest
from csflow.errors import CacheError, ConfigError, DataError, ModelError, StorageError, StoreUnreachableError
from csflow.features.backbone import Backbone, load_backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.features.extraction import _map_ahead
from csflow.features.shared_tier import FeatureTier
from csflow.features.store import FeatureStore
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


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def images(tmp_path: Path) -> Manifest:
    return draw(tmp_path / "images", range(11))


class TestValues:
    def test_are_the_backbones_in_half_precision(self, store: FeatureStore, images: Manifest) -> None:
        backbone = toy()
        opened = store.extract(images, FEATURES, backbone, batch_size=4).open(shas(images))
        for index, path in enumerate(images.files):
            inputs = to_pyramid_inputs(read_image(path), FEATURES, backbone.mean, backbone.std)
            expected = backbone([torch.from_numpy(level)[None] for level in inputs])
            for level, right in zip(opened[index], expected, strict=True):
                assert level.dtype == torch.float32
                torch.testing.assert_close(level, right[0], rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(level, level.half().float(), rtol=0, atol=0)

    def test_batches(self, store: FeatureStore, images: Manifest) -> None:
        opened = store.extract(images, FEATURES, toy()).open(shas(images))
        batch = opened.batch([3, 0, 3])
        assert len(opened) == 11
        assert [level.shape for level in batch] == [(3, 6, 8, 8), (3, 6, 4, 4), (3, 6, 2, 2)]
        for level, third, first in zip(batch, opened[3], opened[0], strict=True):
            assert level.is_contiguous()
            torch.testing.assert_close(level, torch.stack([third, first, third]), rtol=0, atol=0)
        assert [level.shape[0] for level in opened.batch([])] == [0, 0, 0]
        with pytest.raises(IndexError):
            opened.batch([11])

    def test_order_is_that_of_the_question(self, store: FeatureStore, images: Manifest) -> None:
        cached = store.extract(images, FEATURES, toy())
        forward, backward = cached.open(shas(images)), cached.open(shas(images)[::-1])
        torch.testing.assert_close(forward[2][0], backward[8][0], rtol=0, atol=0)

    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    def test_do_not_depend_on_the_batch(self, tmp_path: Path, images: Manifest, batch_size: int) -> None:
        first, second = (
            FeatureStore(tmp_path / str(size)).extract(images, FEATURES, toy(), batch_size=size).open(shas(images))
            for size in (5, batch_size)
        )
        for one, other in zip(first.batch(range(11)), second.batch(range(11)), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)

    def test_are_mapped_not_copied(self, store: FeatureStore, images: Manifest) -> None:
        opened = store.extract(images, FEATURES, toy()).open(shas(images))
        mapped = opened._map(opened.shas[0])
        assert isinstance(mapped, np.memmap)
        assert mapped.dtype == np.float16
        assert opened._map(opened.shas[0]) is mapped

    def test_beyond_half_precision_is_refused(self, store: FeatureStore, images: Manifest) -> None:
        with pytest.raises(ModelError, match=r"Features of .*0\.png exceed half precision"):
            store.extract(images, FEATURES, toy(gain=1e7))


class TestSpace:
    def test_is_named_by_all_that_decides_the_values(self, store: FeatureStore) -> None:
        name = store.space_of(FEATURES, toy())
        changes = ({"image_size": 128}, {"scales": 2}, {"downscale": "nearest"})
        others = [store.space_of(FEATURES.model_copy(update=change), toy()) for change in changes]
        assert len({name, *others, store.space_of(FEATURES, toy(seed=1))}) == 5

    def test_is_not_named_by_where_the_weights_came_from(self, store: FeatureStore) -> None:
        elsewhere = FEATURES.model_copy(update={"weights": "s3://models/toy.safetensors"})
        assert store.space_of(elsewhere, toy()) == store.space_of(FEATURES, toy())

    def test_says_what_it_is(self, store: FeatureStore, images: Manifest) -> None:
        cached = store.extract(images, FEATURES, toy())
        about = json.loads((store.root / cached.space / "space.json").read_text())
        assert (about["backbone"], about["image_size"], about["dtype"]) == ("toy", 64, "float16")

    def test_two_spaces_do_not_meet(self, store: FeatureStore, images: Manifest) -> None:
        one, other = (store.extract(images, FEATURES, toy(seed)) for seed in (0, 1))
        assert other.extracted == 11
        assert not torch.equal(one.open(shas(images))[0][0], other.open(shas(images))[0][0])


class TestIncrement:
    def test_only_new_images_are_computed(self, store: FeatureStore, tmp_path: Path) -> None:
        backbone = toy()
        first = store.extract(draw(tmp_path / "images", range(5)), FEATURES, backbone)
        files = {sha: entry(first, sha).stat().st_ino for sha in first.entries}
        assert first.extracted == len(files) == 5
        grown = draw(tmp_path / "images", range(7))
        second = store.extract(grown, FEATURES, backbone)
        assert second.extracted == 2
        assert set(first.entries) < set(second.entries)
        again = store.extract(grown, FEATURES, backbone)
        assert again.extracted == 0
        assert again == second
        assert {sha: entry(again, sha).stat().st_ino for sha in first.entries} == files

    def test_equal_content_is_computed_once(self, store: FeatureStore, tmp_path: Path) -> None:
        draw(tmp_path, range(2))
        (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
        manifest = table(tmp_path, ["0.png", "1.png", "copy.png"])
        cached = store.extract(manifest, FEATURES, toy())
        assert cached.extracted == len(cached.entries) == 2
        assert len(cached.open(shas(manifest))) == 3

    def test_reports_progress(self, store: FeatureStore, images: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
        store.extract(images, FEATURES, toy())
        assert "extract features: 11/11" in capsys.readouterr().err

    def test_work_before_a_failure_is_kept(self, store: FeatureStore, images: Manifest) -> None:
        images.files[9].write_bytes(b"broken")
        backbone = toy()
        with pytest.raises(DataError, match=r"9\.png has changed"):
            store.extract(images, FEATURES, backbone, batch_size=4)
        draw(images.root, range(11))
        assert store.extract(images, FEATURES, backbone, batch_size=4).extracted == 2

    def test_decoding_does_not_run_away(self) -> None:
        """Memory stays bounded however many images there are."""
        taken: list[int] = []

        def items() -> object:
            for index in range(100):
                taken.append(index)
                yield index

        results = _map_ahead(lambda item: item * 2, items(), ahead=6)
        assert next(results) == 0
        assert len(taken) <= 7
        assert list(results) == [2 * index for index in range(1, 100)]


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


class TestBadInput:
    def test_changed_image(self, store: FeatureStore, images: Manifest) -> None:
        Image.new("RGB", (9, 9)).save(images.files[2])
        with pytest.raises(DataError, match=r"2\.png has changed since the manifest was made: expected SHA-256"):
            store.extract(images, FEATURES, toy())

    def test_missing_image(self, store: FeatureStore, images: Manifest) -> None:
        images.files[2].unlink()
        with pytest.raises(DataError, match=r"Cannot read .*2\.png: No such file"):
            store.extract(images, FEATURES, toy())

    def test_damaged_image(self, store: FeatureStore, tmp_path: Path) -> None:
        draw(tmp_path, range(2))
        (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
        with pytest.raises(DataError, match=r"1\.png is damaged"):
            store.extract(table(tmp_path, ["0.png", "1.png"]), FEATURES, toy())

    def test_no_images(self, store: FeatureStore, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no images"):
            store.extract(table(tmp_path, []), FEATURES, toy())

    def test_odd_size(self, store: FeatureStore, images: Manifest) -> None:
        with pytest.raises(ConfigError, match="Nearest: 64 or 96"):
            store.extract(images, FEATURES.model_copy(update={"image_size": 80}), toy())

    def test_full_disk(self, store: FeatureStore, images: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        written = 0

        def fsync(_: int) -> None:
            nonlocal written
            written += 1
            if written > 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr("csflow.system.files.os.fsync", fsync)
            with pytest.raises(CacheError, match=r"No space left on device\. Free disk space"):
                store.extract(images, FEATURES, toy())
        assert len([path for path in store.root.rglob("*") if path.is_file()]) == 4
        assert store.extract(images, FEATURES, toy()).extracted == 11 - 2

    def test_store_that_cannot_be_made(self, images: Manifest, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CacheError, match=r"Cannot write .*file/features.*choose another folder"):
            FeatureStore(tmp_path / "file" / "features").extract(images, FEATURES, toy())


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

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"store": "x"}'])
    def test_no_manifest(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "cache.json").write_text(content)
        with pytest.raises(CacheError, match=r"cache\.json is no cache manifest: .*Extract the features again"):
            CacheManifest.load(tmp_path / "cache.json")

    def test_edited(self, cached: CacheManifest, tmp_path: Path) -> None:
        path = tmp_path / "cache.json"
        cached.save(path)
        path.write_text(path.read_text().replace(cached.entries[0], "0" * 64))
        with pytest.raises(CacheError, match="its digest does not match"):
            CacheManifest.load(path)


class MemoryTier:
    """A shared tier in memory, with the failures a test asks for."""

    place = "memory"

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


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import FEATURES, FeatureStore, Path, table, toy
backbone = toy()
here, images, result, start = (Path(argument) for argument in sys.argv[1:])
manifest = table(images, sorted(path.name for path in images.iterdir()))
result.with_suffix(".ready").touch()
while not start.exists():
    time.sleep(0.001)
FeatureStore(start.parent / "features").extract(manifest, FEATURES, backbone, batch_size=2).save(result)
"""


@pytest.mark.slow
def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    manifest = draw(tmp_path / "images", range(24))
    results = [tmp_path / f"{name}.json" for name in ("one", "two")]
    arguments = [str(Path(__file__).parent), str(manifest.root)]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, *arguments, str(result), str(tmp_path / "go")])
        for result in results
    ]
    for result, worker in zip(results, workers, strict=True):
        while not result.with_suffix(".ready").exists() and worker.poll() is None:
            time.sleep(0.01)
    (tmp_path / "go").touch()
    for worker in workers:
        assert worker.wait(timeout=120) == 0
    one, two = (CacheManifest.load(result) for result in results)
    assert one == two
    assert len(one.entries) == 24
    alone = FeatureStore(tmp_path / "alone").extract(manifest, FEATURES, toy(), batch_size=2).open(shas(manifest))
    for level, right in zip(one.open(shas(manifest)).batch(range(24)), alone.batch(range(24)), strict=True):
        torch.testing.assert_close(level, right, rtol=2e-3, atol=1e-4)
    assert not list((tmp_path / "features").rglob(".*"))


@pytest.mark.real
def test_magnetic_tiles(mtd: Path, store: FeatureStore) -> None:
    """Real images through the real network; the spread is the one known for these weights."""
    names = sorted(path.name for path in (mtd / "MT_Free" / "Imgs").glob("*.jpg"))[:16]
    manifest, features, backbone = (
        table(mtd / "MT_Free" / "Imgs", names),
        FeatureConfig(),
        load_backbone(FeatureConfig()),
    )
    cached = store.extract(manifest, features, backbone)
    assert cached.shapes == ((192, 12, 12), (192, 6, 6), (192, 3, 3))
    finest, *_ = cached.open(shas(manifest)).batch(range(16))
    assert 3 < finest.std() < 4.5
    alone = to_pyramid_inputs(read_image(manifest.files[5]), features, backbone.mean, backbone.std)
    torch.testing.assert_close(finest[5], backbone([torch.from_numpy(alone[0])[None]])[0][0], rtol=2e-3, atol=5e-3)
    assert store.extract(manifest, features, backbone).extracted == 0
