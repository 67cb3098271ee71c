"""What one step writes for the next ones: damage is noticed, and what can be made again is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import DataConfig, LineConfig
from csflow.data.manifest import build_manifest
from csflow.errors import CacheError, DataError
from csflow.features.cache_manifest import CacheManifest
from csflow.runs.context import RunContext, load_manifest
from csflow.runs.services import Services
from csflow.runs.stored_features import load_features, record_features
from csflow.system.files import sha256_file
from csflow.system.workspace import Workspace
from tests.damage import damages, inflict

LINE = LineConfig(line="plates", data=DataConfig(path="plates"))


@pytest.fixture
def made(tmp_path: Path) -> tuple[RunContext, Path]:
    """A run with twelve images, and its manifest."""
    root = tmp_path / "images"
    (root / "train/good").mkdir(parents=True)
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / f"train/good/{number}.png")
    manifest, file = build_manifest(root, line="plates", roles=LINE.roles), tmp_path / "manifest.csv"
    manifest.save(file)
    digest = manifest.digest
    return RunContext(LINE, "run", "rev", "md5", digest, "key", str(root), False, sha256_file(file)), file


def test_a_damaged_manifest_is_made_again(made: tuple[RunContext, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A changed role would let an image be fitted that another step holds out."""
    context, file = made
    sound = file.read_bytes()
    expected = load_manifest(context, file).frame
    flipped_role = sound.replace(b",fit,", b",gate,", 1)
    assert flipped_role != sound
    for damage, content in [("another role", flipped_role), *damages(sound)]:
        inflict(file, content)
        capsys.readouterr()
        assert load_manifest(context, file).frame.equals(expected), damage
        assert file.read_bytes() == sound, damage
        assert "Put aside as manifest.csv.damaged" in capsys.readouterr().err, damage
    file.unlink()
    assert load_manifest(context, file).frame.equals(expected)


def test_a_damaged_manifest_of_changed_images(made: tuple[RunContext, Path]) -> None:
    context, file = made
    file.write_bytes(file.read_bytes()[:-1])
    (Path(context.data_root) / "train/good/3.png").unlink()
    with pytest.raises(DataError, match=r"manifest\.csv is damaged, and the images below .* have changed"):
        load_manifest(context, file)


def test_a_damaged_context_is_not_used(made: tuple[RunContext, Path], tmp_path: Path) -> None:
    context, file = made[0], tmp_path / "context"
    context.save(file)
    assert RunContext.load(file) == context
    for damage, content in damages(file.read_bytes(), flips=64):
        inflict(file, content)
        with pytest.raises(DataError, match="context .*Run the line again"):
            print(damage, RunContext.load(file))


def test_a_damaged_list_of_features_is_replaced_by_the_recorded_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: Callable[[CacheManifest], Services]
) -> None:
    cached = CacheManifest(tmp_path / "features", "space", ((6, 4, 4), (6, 2, 2)), ("a" * 64, "b" * 64))
    services, file = recorded(cached), tmp_path / "features.json"
    cached.save(file)
    sound = file.read_bytes()
    for damage, content in damages(sound, flips=4):
        inflict(file, content)
        capsys.readouterr()
        found = load_features(services, "run", file)
        assert (found, found.store) == (cached, cached.store), damage
        assert file.read_bytes() == sound, damage
        said = capsys.readouterr().err
        assert "Put aside as features.json.damaged" in said, damage


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[CacheManifest], Services]:
    """A function that records a cache manifest with a run, without MLflow."""
    from csflow.adapters.mlflow.tracking import Tracker

    kept: dict[str, bytes] = {}

    def log(_: Tracker, run_id: str, path: Path, *, folder: str = "") -> None:
        kept[f"{folder}/{path.name}"] = path.read_bytes()

    def fetch(_: Tracker, run_id: str, path: str, target: Path) -> Path:
        (target / "fetched").write_bytes(kept[path])
        return target / "fetched"

    monkeypatch.setattr(Tracker, "log_artifact", log)
    monkeypatch.setattr(Tracker, "fetch_artifact", fetch)
    monkeypatch.setattr(Tracker, "set_tags", lambda *_: None)

    def record(cached: CacheManifest) -> Services:
        services = Services.of(Workspace(tmp_path / "home"))
        record_features(services, "run", cached)
        return services

    return record


def test_without_a_sound_copy_the_list_is_not_used(
    tmp_path: Path, recorded: Callable[[CacheManifest], Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = CacheManifest(tmp_path / "features", "space", ((6, 4, 4),), ("a" * 64,))
    services, file = recorded(cached), tmp_path / "features.json"
    from csflow.adapters.mlflow.tracking import Tracker

    def fetch(_: Tracker, run_id: str, path: str, target: Path) -> Path:
        (target / "fetched").write_bytes(b"{}")
        return target / "fetched"

    monkeypatch.setattr(Tracker, "fetch_artifact", fetch)
    with pytest.raises(CacheError, match="Extract the features again"):
        load_features(services, "run", file)
