from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.mlflow.tracking import Tracker
from csflow.config import DataConfig, FeatureConfig, LineConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.errors import CacheError, UsageError
from csflow.features.cache_manifest import CacheManifest
from csflow.runs.context import RunContext
from csflow.runs.services import Services
from csflow.steps.cache_features import cache_features, extract_shard, plan_shards, shard_of
from csflow.system.files import sha256_file
from csflow.system.workspace import Workspace

IMAGES = 9
LINE = LineConfig(line="plates", data=DataConfig(path="data"), features=FeatureConfig(image_size=128))
Inputs = tuple[Path, Path]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (root / "train" / "good").mkdir(parents=True)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(root / "train" / "good" / f"{number}.png")
    return root


@pytest.fixture
def inputs(images: Path, home: Path, tmp_path: Path) -> Callable[..., Inputs]:
    """A function that opens a run in an empty workspace."""

    def make(*, unchanged: bool = False) -> Inputs:
        from csflow.adapters.mlflow.database import initialise

        workspace = Workspace(home)
        initialise(workspace)
        run = Tracker(workspace).start_run("plates", params={}, tags={})
        manifest = build_manifest(images, line="plates", roles=LINE.roles)
        context, table = tmp_path / "context.json", tmp_path / "manifest.csv"
        manifest.save(table)
        digest = sha256_file(table)
        RunContext(LINE, run, "0" * 40, "m", manifest.digest, "k", str(images), unchanged, digest).save(context)
        return context, table

    return make


def table(images: Path) -> Manifest:
    return build_manifest(images, line="plates", roles=LINE.roles)


@pytest.mark.parametrize("shards", [1, 2, 3, 20])
def test_every_image_is_in_one_shard_and_always_in_the_same(images: Path, shards: int) -> None:
    manifest = table(images)
    parts = [shard_of(manifest, shard, shards) for shard in plan_shards(shards)]
    assert sorted(sha for part in parts for sha in part.frame["sha256"]) == sorted(manifest.frame["sha256"])
    backwards = Manifest(manifest.frame.iloc[::-1].reset_index(drop=True), manifest.root)
    for shard, part in enumerate(parts):
        assert set(shard_of(backwards, shard, shards).frame["sha256"]) == set(part.frame["sha256"])
        assert part.root == images


@pytest.mark.parametrize("shards", [0, -1, 1001])
def test_a_number_of_shards_that_cannot_be_is_refused(shards: int) -> None:
    with pytest.raises(UsageError, match=f"shards is {shards}, expected a number between 1 and 1000"):
        plan_shards(shards)


def test_shards_at_once_come_to_the_same_as_one_step(
    inputs: Callable[..., Inputs], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, manifest = inputs()
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(
                lambda n: extract_shard(Services.from_environment(), context, manifest, shard=n, shards=2),
                plan_shards(2),
            )
        )
    assert sum(json.loads(part)["extracted"] for part in done) == IMAGES
    again = json.loads(extract_shard(Services.from_environment(), context, manifest, shard=1, shards=2))
    assert again["extracted"] == 0, "what is there is found"
    cache_features(Services.from_environment(), context, manifest, features_out=tmp_path / "sharded.json", shards=done)
    cache_features(Services.from_environment(), context, manifest, features_out=tmp_path / "whole.json")
    sharded, whole = (CacheManifest.load(tmp_path / f"{name}.json") for name in ("sharded", "whole"))
    assert (sharded, sharded.digest) == (whole, whole.digest)
    assert len(sharded.open(sharded.entries)) == IMAGES, "every entry is sound"


def test_shards_of_different_code_do_not_fit_together(inputs: Callable[..., Inputs], tmp_path: Path) -> None:
    context, manifest = inputs()
    parts = [json.dumps({"space": space, "shapes": [[1, 2, 2]], "extracted": 1}) for space in ("a", "b")]
    with pytest.raises(CacheError, match="2 shards wrote to these feature spaces: a, b; expected the same one"):
        cache_features(
            Services.from_environment(), context, manifest, features_out=tmp_path / "features.json", shards=parts
        )
    with pytest.raises(CacheError, match="feature spaces: none"):
        cache_features(
            Services.from_environment(), context, manifest, features_out=tmp_path / "features.json", shards=["", ""]
        )


def test_an_unchanged_run_extracts_nothing(inputs: Callable[..., Inputs], tmp_path: Path, home: Path) -> None:
    context, manifest = inputs(unchanged=True)
    assert extract_shard(Services.from_environment(), context, manifest, shard=0, shards=1) == ""
    cache_features(Services.from_environment(), context, manifest, features_out=tmp_path / "features.json", shards=[""])
    assert not (tmp_path / "features.json").exists()
    assert not (home / "features").exists()
