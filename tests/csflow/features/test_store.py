"""The feature store: incremental, self-repairing, safe for several processes, and the same values everywhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csflow.config import FeatureConfig
from csflow.data.images import read_image, to_pyramid_inputs
from csflow.data.manifest import Manifest
from csflow.errors import CacheError, ConfigError, DataError, ModelError
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.features.extraction import _map_ahead
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, draw, entry, shas, table, toy


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
        with pytest.raises(ModelError, match=r"Features of .*0\.png exceed half precision: .*e\+.*, at most 65504 can"):
            store.extract(images, FEATURES, toy(gain=1e7))

    @pytest.mark.parametrize(("value", "what"), [(float("inf"), "infinite"), (float("nan"), "NaN")])
    def test_what_is_no_number_is_not_called_too_large(
        self, store: FeatureStore, images: Manifest, value: float, what: str
    ) -> None:
        trunk = toy()
        next(trunk.blocks[1].parameters()).data[0].fill_(value)  # after it was checked, as activations may overflow
        with pytest.raises(
            ModelError, match=rf"\d+ of \d+ features of .*0\.png are (NaN|{what}), although all weights"
        ):
            store.extract(images, FEATURES, trunk)


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
            with pytest.raises(CacheError, match=r"No space left on device.*1048 bytes are needed.*Free disk space"):
                store.extract(images, FEATURES, toy())
        assert len([path for path in store.root.rglob("*") if path.is_file()]) == 4
        assert store.extract(images, FEATURES, toy()).extracted == 11 - 2

    def test_store_that_cannot_be_made(self, images: Manifest, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CacheError, match=r"Cannot write .*file/features.*choose another one"):
            FeatureStore(tmp_path / "file" / "features").extract(images, FEATURES, toy())


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from csflow.features.store import FeatureStore
from tests.csflow.features.toy_features import FEATURES, table, toy
backbone = toy()
images, result, start = (Path(argument) for argument in sys.argv[1:])
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
    arguments = [str(Path(__file__).parents[3]), str(manifest.root)]
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
