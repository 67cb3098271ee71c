"""Lost files of a version: every other copy is tried, and if there is none, the way out is printed and works."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.storage import Store
from csflow.errors import LostFilesError, UsageError
from csflow.release import challenge
from csflow.release.locate import locate_detector
from csflow.release.publication import lay_down, publish, require_champion_files
from csflow.runs.services import Services
from csflow.system.files import sha256_tree
from csflow.system.workspace import Workspace

pytestmark = pytest.mark.slow

State = Literal["intact", "damaged", "missing"]
STATES: tuple[State, ...] = ("intact", "damaged", "missing")


@pytest.fixture
def services(home: Path) -> Services:
    return Services.of(Workspace(home))


def register(services: Services, number: int, **tags: str) -> Path:
    """Register and publish a version; its folder of artifacts."""
    folder = services.workspace.root.parent / f"made-{number}"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"line": "tiles", "number": {number}}}')
    (folder / "model.safetensors").write_bytes(bytes([number]) * 2000)
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "PNG")
    before = set(services.workspace.root.glob("mlartifacts/tiles/models/*"))
    tags = {"content_key": str(number), "detector_digest": sha256_tree(folder), **tags}
    run_id = Tracker(services.workspace).start_run("tiles", params={}, tags={})
    Registry(services.workspace).register(folder, line="tiles", run_id=run_id, tags=tags, example=buffer.getvalue())
    (made,) = set(services.workspace.root.glob("mlartifacts/tiles/models/*")) - before
    publish(services, services.registry.find_version("tiles", number))
    return made


def spoil(folder: Path, state: State) -> None:
    if state == "missing":
        shutil.rmtree(folder)
    elif state == "damaged":
        (file,) = folder.rglob("model.safetensors")
        content = bytearray(file.read_bytes())
        content[7] ^= 1
        file.write_bytes(bytes(content))


@pytest.mark.parametrize("artifact", STATES)
@pytest.mark.parametrize("published", STATES)
def test_one_intact_copy_is_enough(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, artifact: State, published: State
) -> None:
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines/tiles.yaml").write_text("line: tiles\ndata: {path: data}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path / "lines"))
    register(services, 1, decision="promoted")
    stored = register(services, 2, decision="promoted")
    services.registry.set_alias("tiles", 2)
    version = services.registry.find_version("tiles")
    copy = services.workspace.detectors / "tiles" / version.tags["detector_digest"]
    spoil(stored, artifact)
    spoil(copy, published)
    if "intact" in (artifact, published):
        assert sha256_tree(locate_detector("tiles", services)) == version.tags["detector_digest"]
        assert lay_down(services, version) == copy
        return
    for ask in (lambda: locate_detector("tiles", services), lambda: lay_down(services, version)):
        with pytest.raises(LostFilesError, match=r"version 2 .*intact \(1\).*: csflow promote tiles@1$"):
            ask()
    assert copy.exists() == (published == "damaged"), "a damaged copy is not thrown away without another"
    assert lay_down(services, services.registry.find_version("tiles", 1)).is_dir()


def test_the_store_has_a_copy_too(services: Services, bucket: str) -> None:
    shared = replace(services, store=Store(bucket, "plant"))
    spoil(register(shared, 1), "damaged")
    version = shared.registry.find_version("tiles", 1)
    shutil.rmtree(shared.workspace.detectors)
    assert sha256_tree(lay_down(shared, version)) == version.tags["detector_digest"]
    shutil.rmtree(shared.workspace.detectors)
    key = f"detectors/tiles/{version.tags['detector_digest']}/model.safetensors"
    assert shared.store is not None
    shared.store.write(key, b"something else")
    with pytest.raises(LostFilesError, match=r"No other version of tiles is intact.*csflow run tiles --force"):
        lay_down(shared, version)


def test_the_gate_names_the_new_version_as_the_way_out(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from csflow.detector.detector import Detector

    monkeypatch.setattr(Detector, "load", lambda folder: folder)
    artifacts = {
        number: register(services, number, decision="promoted", image_auroc=f"0.{number}") for number in (1, 2)
    }
    artifacts[3] = register(services, 3)
    services.registry.set_alias("tiles", 2)
    for number in (1, 2):
        spoil(artifacts[number], "damaged")
    shutil.rmtree(services.workspace.detectors)
    with pytest.raises(LostFilesError, match=r"version 2 .*intact \(3\).*csflow promote tiles@3"):
        challenge._contenders(services, "tiles", 3)
    services.registry.set_alias("tiles", 3)
    register(services, 4)
    challenger, references = challenge._contenders(services, "tiles", 4)
    assert (challenger.version, [reference.version for reference in references]) == (4, [3])
    assert re.search(r"former champion version 2 cannot be compared", capsys.readouterr().err)


def test_a_mistyped_name_is_still_a_usage_error(services: Services) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        locate_detector("some/folder", services)


def test_training_is_refused_before_it_begins_if_the_gate_could_not_compare(
    services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    first = register(services, 1, decision="promoted")
    register(services, 2)
    services.registry.set_alias("tiles", 1)
    require_champion_files(services, services.registry.versions("tiles"))
    spoil(first, "damaged")
    shutil.rmtree(services.workspace.detectors)
    with pytest.raises(LostFilesError, match=r"version 1 .*intact \(2\).*csflow promote tiles@2"):
        require_champion_files(services, services.registry.versions("tiles"))
    services.registry.set_alias("tiles", 2)
    require_champion_files(services, services.registry.versions("tiles"))


def test_training_is_the_way_out_if_no_version_is_intact(
    services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    only = register(services, 1, decision="promoted")
    services.registry.set_alias("tiles", 1)
    spoil(only, "missing")
    shutil.rmtree(services.workspace.detectors)
    require_champion_files(services, services.registry.versions("tiles"))
    assert "No other version of tiles is intact either. Train another one" in capsys.readouterr().err
