"""Pruning with a real registry, a real store over HTTP and real files: what goes, and what must not."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from csflow.adapters.deployment import endpoints_from_environment
from csflow.adapters.mlflow import database
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.storage import Store
from csflow.config import DataConfig, LineConfig
from csflow.detector.calibration import calibrate
from csflow.errors import CacheError, RegistryError
from csflow.features.cache_manifest import CacheManifest
from csflow.release import prune, prune_plan, removal
from csflow.runs.context import RunContext
from csflow.runs.services import Services
from csflow.runs.stored_features import MODEL_KEY, record_features, recorded_features
from csflow.steps.register import _version_tags
from csflow.system.files import sha256_tree, write_json
from csflow.system.workspace import Workspace
from tests.csflow.kubernetes_server import Cluster

SPACE, OTHER = "a" * 32, "b" * 32
LATER = datetime.now(UTC) + timedelta(days=30)
LONG_AGO = (1e9, 1e9)


def sha(number: int) -> str:
    return f"{number:02x}" * 32


class Plant:
    """A workspace and a store, filled as runs fill them."""

    def __init__(self, workspace: Workspace, store: Store) -> None:
        self.workspace, self.store = workspace, store
        self.services = Services.of(workspace, store=store)

    def register(self, line: str, entries: range, *, space: str = SPACE, record: bool = True, **tags: str) -> int:
        """A version made from these entries, published here and in the store."""
        number = len(Registry(self.workspace).versions(line)) + 1 if line in Registry(self.workspace).lines() else 1
        folder = self.workspace.root / "made" / f"{line}{number}{tags.get('content_key', '')}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(f"{line} {number}".encode() * 1000)
        digest = sha256_tree(folder)
        run = Tracker(self.workspace).start_run(line, params={}, tags={})
        tags = {"content_key": digest, "detector_digest": digest, MODEL_KEY: digest[::-1], **tags}
        if record:
            cached = CacheManifest(self.workspace.features, space, ((1, 1, 1),), tuple(sha(n) for n in entries))
            record_features(self.services, run, cached)
            tags |= {"features_space": cached.space, "features_digest": cached.digest}
        picture = io.BytesIO()
        Image.new("RGB", (9, 9)).save(picture, "PNG")
        made = Registry(self.workspace).register(folder, line=line, run_id=run, tags=tags, example=picture.getvalue())
        self.store.upload_directory(folder, f"detectors/{line}/{digest}")
        shutil.copytree(folder, self.workspace.detectors / line / digest, dirs_exist_ok=True)
        return made

    def fill(self, entries: range, space: str = SPACE) -> None:
        """Entries here, long unused, and in the store."""
        for number in entries:
            path = self.workspace.features / space / sha(number)[:2] / sha(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1000))
            os.utime(path, LONG_AGO)
            self.store.write(f"features/{space}/{sha(number)[:2]}/{sha(number)}", bytes(1000))
        for folder in (path for path in (self.workspace.features / space).rglob("*") if path.is_dir()):
            os.utime(folder, LONG_AGO)
        os.utime(self.workspace.features / space, LONG_AGO)

    def digest(self, line: str, number: int) -> str:
        return Registry(self.workspace).find_version(line, number).tags["detector_digest"]

    def versions(self, line: str = "tiles") -> list[int]:
        return sorted(version.version for version in Registry(self.workspace).versions(line))

    def here(self, space: str = SPACE) -> set[int]:
        found = (self.workspace.features / space).glob("??/*")
        return {int(path.name[:2], 16) for path in found}

    def shared(self, space: str = SPACE) -> set[int]:
        return {int(one.key.split("/")[-1][:2], 16) for one in self.store.list(f"features/{space}/")}

    def published(self, line: str = "tiles") -> set[str]:
        """Digests that are whole in both places."""
        local = {path.name for path in (self.workspace.detectors / line).iterdir()}
        there = {one.key.split("/")[2].partition(".")[0] for one in self.store.list(f"detectors/{line}/")}
        assert local == there
        return local

    def plan(self, keep: int = 1, now: datetime = LATER) -> prune_plan.PrunePlan:
        return prune.plan_pruning(self.services, prune_plan.PrunePolicy.of(keep, 7, now))

    def prune(self, keep: int = 1, now: datetime = LATER) -> prune_plan.PrunePlan:
        made = self.plan(keep, now)
        removal.remove(self.services, made)
        return made


@pytest.fixture
def plant(home: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Plant:
    home.mkdir()
    database.initialise(Workspace(home))
    monkeypatch.setenv("CSFLOW_STORE", f"s3://{bucket}/plant")
    monkeypatch.delenv("CSFLOW_ENDPOINTS", raising=False)
    return Plant(Workspace(home), Store(bucket, "plant", attempts=2))


def test_what_no_live_version_names_goes_everywhere(plant: Plant) -> None:
    plant.register("tiles", range(0, 4), decision="promoted", image_auroc="0.9")
    plant.register("tiles", range(2, 6))
    plant.register("tiles", range(4, 8))
    plant.register("cups", range(20, 22), space=OTHER)
    Registry(plant.workspace).set_alias("tiles", 1)
    plant.fill(range(12))
    plant.fill(range(20, 24), OTHER)
    plant.fill(range(3), "c" * 32)
    (plant.workspace.features / ("c" * 32) / "trunk.onnx").write_bytes(bytes(10))
    os.utime(plant.workspace.features / ("c" * 32) / "trunk.onnx", LONG_AGO)
    os.utime(plant.workspace.features / ("c" * 32), LONG_AGO)
    gone = plant.digest("tiles", 2)
    before = sha256_tree(plant.workspace.root), {one.key for one in plant.store.list("")}

    made = plant.plan()
    assert (sha256_tree(plant.workspace.root), {one.key for one in plant.store.list("")}) == before
    assert made.live["tiles"] == {1: ["champion"], 3: ["newest"]}
    (group,) = (group for group in made.removals if group.versions)
    assert [version.version for version in group.versions] == [2]
    assert group.bytes > 3 * 7000
    assert not made.refusal
    assert not made.notes

    assert removal.remove(plant.services, made) == made.bytes
    assert plant.versions() == [1, 3]
    assert gone not in plant.published()
    assert len(plant.published()) == 2
    assert plant.here() == plant.shared() == {0, 1, 2, 3, 4, 5, 6, 7}
    assert plant.here(OTHER) == plant.shared(OTHER) == {20, 21}
    assert not (plant.workspace.features / ("c" * 32)).exists()
    assert plant.shared("c" * 32) == set()
    assert not list((plant.workspace.root / "mlartifacts").rglob("tiles2"))
    sound = Registry(plant.workspace).download_detector("tiles", 3, plant.workspace.root / "again")
    assert sound.name == plant.digest("tiles", 3)
    assert plant.plan().removals == []


def test_parts_of_uploads_that_never_ended_go(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = plant.store.client.create_multipart_upload
    for key in ("plant/features/a", "plant/features/b", "another/features"):
        begin(Bucket=plant.store.bucket, Key=key)
    plant.prune(now=datetime(2001, 1, 1, tzinfo=UTC))  # begun later: perhaps in progress
    assert len(_unfinished(plant)) == 3
    monkeypatch.setattr(prune_plan.PrunePolicy, "of", lambda keep, days: prune_plan.PrunePolicy(keep, LATER))
    assert CliRunner().invoke(_app(), []).exit_code == 0
    assert len(_unfinished(plant)) == 3, "nothing goes without --apply"
    done = CliRunner().invoke(_app(), ["--apply"])
    assert "dropped the parts of 2 uploads" in done.output
    assert _unfinished(plant) == ["another/features"]


def _unfinished(plant: Plant) -> list[str]:
    found = plant.store.client.list_multipart_uploads(Bucket=plant.store.bucket)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_what_is_young_stays(plant: Plant) -> None:
    for _ in range(2):
        plant.register("tiles", range(2))
    plant.fill(range(4))
    used = plant.workspace.features / SPACE / sha(3)[:2] / sha(3)
    os.utime(used)
    made = plant.prune(now=datetime.now(UTC))
    assert made.live["tiles"][1] == ["recent"]
    assert plant.versions() == [1, 2]
    assert plant.here() == {0, 1, 3}
    assert plant.shared() == {0, 1, 2, 3}


def test_what_became_used_between_plan_and_removal_stays(plant: Plant) -> None:
    plant.register("tiles", range(1))
    plant.fill(range(3))
    made = plant.plan(now=datetime.now(UTC))
    os.utime(plant.workspace.features / SPACE / sha(2)[:2] / sha(2))
    removal.remove(plant.services, made)
    assert plant.here() == {0, 2}


def test_what_became_champion_between_plan_and_removal_stays(plant: Plant) -> None:
    for _ in range(3):
        plant.register("tiles", range(1))
    plant.fill(range(3))
    made = plant.plan()
    Registry(plant.workspace).set_alias("tiles", 1)
    removal.remove(plant.services, made)
    assert plant.versions() == [1, 3]
    assert plant.here() == {0, 1, 2}
    assert plant.prune().removals
    assert plant.here() == {0}


def test_what_an_endpoint_names_stays_though_its_process_is_gone(plant: Plant) -> None:
    for _ in range(4):
        plant.register("tiles", range(1))
    state = {"line": "tiles", "pid": 1, "digest": plant.digest("tiles", 1), "version": "1"}
    write_json(plant.workspace.endpoints / "tiles.json", state)
    trial = state | {"digest": plant.digest("tiles", 2)}
    write_json(plant.workspace.endpoints / "tiles.processes" / "7.json", trial)
    made = plant.prune()
    assert made.live["tiles"] == {1: ["endpoint"], 2: ["endpoint"], 4: ["newest"]}
    assert plant.versions() == [1, 2, 4]


def test_a_detector_that_two_versions_share_stays_with_the_one_that_stays(plant: Plant) -> None:
    plant.register("tiles", range(1))
    plant.register("tiles", range(1), detector_digest=plant.digest("tiles", 1))
    plant.prune()
    assert plant.versions() == [2]
    assert plant.digest("tiles", 2) in {path.name for path in (plant.workspace.detectors / "tiles").iterdir()}


def test_an_unreadable_record_keeps_all_features_and_fails_the_command(plant: Plant) -> None:
    plant.register("tiles", range(1))
    plant.register("tiles", range(2))
    plant.fill(range(4))
    (record,) = (path for path in plant.workspace.root.rglob("cache.json") if str(sha(1)) in path.read_text())
    for damage in ("gone", "changed"):
        content = record.read_text()
        if damage == "gone":
            record.unlink()
        else:
            record.write_text(content.replace(sha(1), sha(9)))
        made = plant.plan()
        assert "features of tiles@2 are not known, so none are removed" in made.refusal
        assert not [group for group in made.removals if "features" in group.what]
        assert [group for group in made.removals if group.versions]
        record.write_text(content)
    record.unlink()
    ended = CliRunner().invoke(_app(), ["--apply"])
    assert isinstance(ended.exception, CacheError)
    assert plant.here() == plant.shared() == {0, 1, 2, 3}


def test_a_version_of_an_older_csflow_keeps_all_features(plant: Plant) -> None:
    plant.register("tiles", range(1), record=False)
    plant.register("cups", range(1))
    plant.fill(range(3))
    made = plant.prune()
    assert "tiles@1" in made.notes[0]
    assert "older csflow" in made.notes[0]
    assert plant.here() == plant.shared() == {0, 1, 2}


def test_a_registry_without_versions_removes_no_features(plant: Plant) -> None:
    plant.fill(range(3))
    made = plant.prune()
    assert "all of them stay" in made.notes[0]
    assert plant.here() == plant.shared() == {0, 1, 2}


def test_a_store_of_another_registry_keeps_its_features(plant: Plant, tmp_path: Path) -> None:
    plant.register("tiles", range(1))
    plant.fill(range(3))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/model").write_text("x")
    plant.store.upload_directory(tmp_path / "foreign", f"detectors/tiles/{'7' * 64}")
    made = plant.prune()
    assert "Another registry seems to use the store" in made.notes[0]
    assert (plant.here(), plant.shared()) == ({0}, {0, 1, 2})
    assert plant.store.index_of(f"detectors/tiles/{'7' * 64}") is not None


def test_models_and_checkpoints_of_other_trainings_go(plant: Plant) -> None:
    plant.register("tiles", range(1), model_key="1" * 64)
    folders = {name: plant.workspace.models / name for name in ("1" * 64, "2" * 64, f"{'3' * 64}.work", "notes")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(500))
        os.utime(folder / "model.safetensors", LONG_AGO)
        os.utime(folder, LONG_AGO)
    fresh = plant.workspace.models / f"{'4' * 64}.work"
    fresh.mkdir()
    (fresh / "checkpoint.safetensors").touch()
    made = plant.prune(now=datetime.now(UTC))
    assert {group.what: group.bytes for group in made.removals} == {"fitted models": 500, "checkpoints": 500}
    assert {path.name for path in plant.workspace.models.iterdir()} == {"1" * 64, "notes", fresh.name}


def aged(path: Path, size: int = 500) -> Path:
    """A file that was last used long ago, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, LONG_AGO)
    os.utime(path.parent, LONG_AGO)
    return path


def test_what_runs_leave_behind_goes_and_what_versions_and_the_next_run_need_stays(plant: Plant) -> None:
    number = plant.register("tiles", range(1))
    (version,) = (v for v in Registry(plant.workspace).versions("tiles") if v.version == number)
    space, data = plant.workspace, plant.workspace.data / "tiles"
    going = [
        aged(space.runs / "tiles-20200101-010101-17" / "run.log"),
        aged(space.runs / "ablate-tiles-20200101-010101-17" / "run.log"),
        aged(space.runs / ("0" * 32) / "report.html"),
        aged(space.models / f".{'2' * 64}.a1b2c3d4.tmp" / "model.safetensors"),
        aged(space.detectors / "tiles" / f".{'3' * 64}.a1b2c3d4" / "flow"),
        aged(space.features / OTHER / "00" / f".{'4' * 64}.a1b2c3d4.tmp"),
        aged(data / "1234" / "listing.json"),
    ]
    staying = [
        aged(space.runs / version.run_id / "report.html"),
        aged(space.runs / ".tiles.lock"),
        aged(space.runs / "notes" / "mine.txt"),
        aged(data / ".repository-0123" / "HEAD"),
        aged(data / "5678" / "listing.json"),
        space.runs / "tiles-20991231-010101-17" / "run.log",
    ]
    os.utime(data / "5678", (1.1e9, 1.1e9))
    staying[-1].parent.mkdir()
    staying[-1].touch()
    made = plant.prune(now=datetime.now(UTC))
    assert {each.what: each.bytes for each in made.removals} == {
        "logs of runs": 1000,
        "reports of runs without a version": 500,
        "checked-out images of tiles": 500,
        "unfinished files": 1500,
    }
    assert not any(path.exists() for path in going)
    assert all(path.exists() for path in staying)


def test_damaged_files_that_were_put_aside_go_when_they_are_old(plant: Plant) -> None:
    plant.register("tiles", range(1), model_key="1" * 64)
    root = plant.workspace.root
    aside = ["models/1.damaged/model.safetensors", "ablations/.rows/k.json.damaged-2", "features/s/ab/x.damaged"]
    others = ["data/tiles/d/images/photo.damaged", "models/notes.damaged.txt"]
    for name in (*aside, *others, "models/2.damaged"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(10))
        if name != "models/2.damaged":
            os.utime(root / name, LONG_AGO)
    os.utime(root / "models/1.damaged", LONG_AGO)
    made = plant.prune(now=datetime.now(UTC))
    assert {group.what: group.bytes for group in made.removals} == {"damaged files put aside": 30}
    assert not any((root / name).exists() for name in aside)
    assert all((root / name).exists() for name in (*others, "models/2.damaged"))


def test_an_interrupted_removal_is_taken_up_again(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        plant.register("tiles", range(1))
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "delete_version", _killed)
        with pytest.raises(KeyboardInterrupt):
            plant.prune()
    assert plant.versions() == [1, 2]
    assert plant.published() == {plant.digest("tiles", 2)}
    plant.prune()
    assert plant.versions() == [2]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_version_with_an_alias_is_not_deleted_whoever_asks(plant: Plant) -> None:
    plant.register("tiles", range(1))
    version = Registry(plant.workspace).find_version("tiles", 1)
    Registry(plant.workspace).set_alias("tiles", 1, "audited")
    with pytest.raises(RegistryError, match="the alias audited names it"):
        Registry(plant.workspace).delete_version(version)
    assert plant.versions() == [1]


def test_numbers_are_not_used_again(plant: Plant) -> None:
    """The seed of a forced run is taken from them."""
    for _ in range(3):
        plant.register("tiles", range(1))
    Registry(plant.workspace).set_alias("tiles", 1)
    for number in (2, 3):
        Registry(plant.workspace).delete_version(Registry(plant.workspace).find_version("tiles", number))
    assert plant.register("tiles", range(1), content_key="new") == 4


def test_the_record_of_a_run_comes_back(plant: Plant) -> None:
    cached = CacheManifest(plant.workspace.features, SPACE, ((2, 3, 4),), (sha(1), sha(2)))
    run = Tracker(plant.workspace).start_run("tiles", params={}, tags={})
    record_features(plant.services, run, cached)
    assert recorded_features(plant.services, run) == cached
    assert Tracker(plant.workspace).read_run(run).tags["features_digest"] == cached.digest
    with pytest.raises(RegistryError, match=r"features/cache\.json of run .* cannot be read"):
        recorded_features(plant.services, Tracker(plant.workspace).start_run("tiles", params={}, tags={}))


def test_a_version_says_what_its_run_was_made_from(plant: Plant, tmp_path: Path) -> None:
    import numpy as np

    cached = CacheManifest(plant.workspace.features, SPACE, ((2, 3, 4),), (sha(1), sha(2)))
    run = Tracker(plant.workspace).start_run("tiles", params={}, tags={MODEL_KEY: "5" * 64})
    record_features(plant.services, run, cached)
    nothing = calibrate(np.ones(9), np.ones((9, 2, 2)), "none").to_json()
    write_json(tmp_path / "detector" / "calibration.json", nothing)
    line = LineConfig(line="tiles", data=DataConfig(path="data/tiles"))
    context = RunContext(line, run, "rev", "md5", "digest", "key", "root", unchanged=False, manifest_sha256="")
    tags = _version_tags(plant.services, context, tmp_path / "detector", {})
    assert [tags[name] for name in ("features_space", "features_digest", "model_key")] == [
        SPACE, cached.digest, "5" * 64,
    ]  # fmt: skip


def _app() -> Callable[..., object]:
    import typer

    from csflow.cli.prune import prune as command

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return app


def test_the_command_shows_first_and_acts_on_demand(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        prune_plan.PrunePolicy, "of", lambda keep, days: prune_plan.PrunePolicy(keep, LATER - timedelta(days=days))
    )
    for _ in range(3):
        plant.register("tiles", range(1))
    plant.fill(range(3))
    shown = CliRunner().invoke(_app(), ["--keep", "2"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for words in ("versions of tiles", "1 (1)", "features in aaaaaaaaaaaa", "tiles keeps 3 (newest), 2 (newest)"):
        assert words in shown.output
    assert "Nothing was changed" in shown.output
    assert plant.versions() == [1, 2, 3]
    done = CliRunner().invoke(_app(), ["--keep", "2", "--apply"])
    assert "removed" in done.output
    assert plant.versions() == [2, 3]
    assert plant.here() == plant.shared() == {0}


def test_an_inference_service_names_digests_of_both_releases(tmp_path: Path, cluster: Cluster) -> None:
    champion, challenger = "1" * 64, "2" * 64
    cluster.objects["inferenceservices", "tiles"] = {
        "metadata": {"name": "tiles", "annotations": {"csflow": json.dumps({"beside": challenger, "run": "3" * 32})}},
        "spec": {"predictor": {"model": {"storageUri": f"s3://b/detectors/tiles/{champion}/"}}},
    }
    assert endpoints_from_environment(Workspace(tmp_path)).named_digests("tiles") == {champion, challenger}
    assert endpoints_from_environment(Workspace(tmp_path)).named_digests("cups") == set()
