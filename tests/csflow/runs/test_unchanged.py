from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from csflow.adapters.mlflow.database import initialise
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.runs import flat_params
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.versioning import add_and_push, create_data_repository
from csflow.config import DataConfig, LineConfig
from csflow.errors import DataError
from csflow.runs.checkout import materialise
from csflow.runs.services import Services
from csflow.runs.unchanged import unchanged_since_champion
from csflow.system.workspace import Workspace


def picture(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 40), shade).save(file)


class Factory:
    """Two lines in one tracked folder, and a champion made from what there is at first."""

    def __init__(self, root: Path, home: Path) -> None:
        self.workspace, self.repo = Workspace(home), root / "repo"
        create_data_repository(self.repo)
        for name in ("tiles", "bolts"):
            picture(self.repo / "data" / name / "train" / "good" / "0.png", 10)
        add_and_push(self.repo, "data", "First images")
        self.line = LineConfig(line="tiles", data=DataConfig(repo=str(self.repo), path="data/tiles"))
        initialise(self.workspace)

    def crown(self, root: Path) -> None:
        manifest, checked_out = materialise(self.line, self.workspace)
        run = Tracker(self.workspace).start_run("tiles", params=flat_params(self.line), tags={})
        (root / "detector").mkdir()
        (root / "detector" / "config.json").write_text("{}")
        tags = {"content_key": "k", "data_md5": checked_out.data_md5, "data_digest": manifest.digest}
        example = (self.repo / "data" / "tiles" / "train" / "good" / "0.png").read_bytes()
        version = Registry(self.workspace).register(
            root / "detector", line="tiles", run_id=run, tags=tags, example=example
        )
        Registry(self.workspace).set_alias("tiles", version)

    def add(self, line: str) -> None:
        picture(self.repo / "data" / line / "train" / "good" / "1.png", 99)
        add_and_push(self.repo, "data", f"More {line}")

    def unchanged(self) -> str:
        return unchanged_since_champion(self.line, Services.of(self.workspace))


@pytest.fixture
def factory(tmp_path: Path, home: Path) -> Factory:
    return Factory(tmp_path, home)


@pytest.mark.timeout(120)
def test_only_new_images_of_the_line_itself_count(factory: Factory, tmp_path: Path) -> None:
    assert factory.unchanged() == "", "there is no champion"
    factory.crown(tmp_path)
    assert "those of its champion, version 1" in factory.unchanged()
    factory.add("bolts")
    assert "those of its champion" in factory.unchanged(), "another line's images"
    factory.add("tiles")
    assert factory.unchanged() == ""
    pinned = factory.line.model_copy(update={"data": factory.line.data.model_copy(update={"rev": "HEAD~1"})})
    assert unchanged_since_champion(pinned, Services.of(factory.workspace)), "at the revision that the line names"
    moved = factory.line.model_copy(update={"data": factory.line.data.model_copy(update={"path": "data/bolts"})})
    assert unchanged_since_champion(moved, Services.of(factory.workspace)) == "", (
        "another folder of the same tracked one"
    )
    gone = factory.line.model_copy(update={"data": factory.line.data.model_copy(update={"rev": "v9"})})
    with pytest.raises(DataError, match="no revision 'v9'"):
        unchanged_since_champion(gone, Services.of(factory.workspace))


@pytest.mark.timeout(120)
def test_unchanged_folder_needs_no_images(factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory.crown(tmp_path)
    for cached in (factory.repo / ".dvc" / "cache", factory.repo.with_name("repo-remote")):
        cached.rename(cached.with_name(f"{cached.name}-away"))
    import shutil

    shutil.rmtree(factory.workspace.data)
    assert "those of its champion" in factory.unchanged()
