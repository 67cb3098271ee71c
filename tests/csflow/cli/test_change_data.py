"""``csflow data add``, ``remove`` and ``repair``: one at a time, and killed at every point."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from csflow.adapters.versioning import journal, open_working_copy
from csflow.adapters.versioning.git import git
from csflow.cli.data import data_app
from csflow.config import load_line
from csflow.errors import DataError
from csflow.runs.checkout import materialise
from csflow.system.files import sha256_file
from csflow.system.workspace import Workspace
from tests.csflow.cli.test_data import call, draw, files_of, head, mask, published
from tests.csflow.cli.test_data import plant as clone

__all__ = ["clone", "published"]  # fixtures

ROOT = Path(__file__).parents[3]
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from csflow.adapters.versioning import journal, repository
    from csflow.runs import add_images, change_images
    from csflow.adapters import versioning

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    point = sys.argv[1]
    if point == "placing":
        copy, calls = add_images.shutil.copyfile, []
        def half(source, target):
            calls.append(target)
            copy(source, target)
            if len(calls) == 2:
                open(target, "r+b").truncate(10)
                killed()
        add_images.shutil.copyfile = half
    elif point == "gate":
        change_images._require_quality = killed
    elif point == "recording":
        versioning.add_and_push = killed
    elif point == "committing":
        def locked_index(root, *_):
            (root / ".git/index.lock").touch()
            killed()
        repository.commit = locked_index
    elif point == "end":
        journal.end = killed
    from csflow.cli.data import data_app
    data_app(["add", "tile", sys.argv[2]])
    """
)


@pytest.fixture
def plant(clone: Path) -> Path:
    """The repository with its images, which a clone does not have yet."""
    open_working_copy(load_line("tile").data)
    return clone


def kill_at(point: str, folder: Path) -> None:
    """Run ``csflow data add`` and kill it -9 at a point."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, point, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize(
    ("point", "finished"),
    [("placing", False), ("gate", False), ("recording", True), ("committing", True), ("end", True)],
)
@pytest.mark.slow
def test_a_killed_addition_is_finished_or_undone(plant: Path, tmp_path: Path, point: str, finished: bool) -> None:
    for number in range(3):
        draw(tmp_path / f"new/monday/{number}.png", 800 + number)
    before = head(plant), files_of(plant / "data")
    kill_at(point, tmp_path / "new")
    other = draw(tmp_path / "other/x.png", 900).parent
    with pytest.raises(DataError, match=r"'csflow data add' was interrupted .*csflow data repair"):
        call(data_app, "add", "tile", other)
    said = call(data_app, "repair", "tile").output
    assert ("undone" in said) != finished
    assert "Nothing to repair" in call(data_app, "repair", "tile").output
    assert git("status", "--porcelain", repository=plant) == ""
    assert ((head(plant), files_of(plant / "data")) == before) != finished
    assert any("monday" in name for name in files_of(plant / "data")) == finished
    call(data_app, "add", "tile", other)
    manifest, _ = materialise(load_line("tile"), Workspace(tmp_path / "fresh"))
    assert sorted(files_of(manifest.root)) == sorted(files_of(plant / "data"))


@pytest.mark.slow
def test_a_repair_can_undo_what_it_could_finish(plant: Path, tmp_path: Path) -> None:
    before = head(plant), files_of(plant / "data")
    kill_at("recording", draw(tmp_path / "new/deep/er/1.png", 800).parents[2])
    assert "undone" in call(data_app, "repair", "tile", "--undo").output
    assert (head(plant), files_of(plant / "data")) == before
    assert git("status", "--porcelain", repository=plant) == ""


def test_an_unreadable_journal_is_named(plant: Path, tmp_path: Path) -> None:
    kill_at("gate", draw(tmp_path / "new/1.png", 800).parent)
    (plant / ".git/csflow/journal.json").write_text("{")
    for arguments in (["repair", "tile"], ["add", "tile", str(tmp_path / "new")]):
        with pytest.raises(DataError, match=r"journal .*journal\.json .*cannot be read"):
            call(data_app, *arguments)


@pytest.mark.slow
def test_two_additions_at_once_take_turns(plant: Path, tmp_path: Path) -> None:
    folders = [draw(tmp_path / f"new{number}/part{number}.png", 800 + number).parent for number in range(3)]
    command = [sys.executable, "-c", "import sys; from csflow.cli.data import data_app; data_app(sys.argv[1:])"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*command, "add", "tile", str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    said = [child.communicate(timeout=300)[1] for child in running]
    assert [child.returncode for child in running] == [0, 0, 0], said
    manifest, _ = materialise(load_line("tile"), Workspace(tmp_path / "fresh"))
    assert {f"train/good/part{number}.png" for number in range(3)} <= set(manifest.frame["path"])
    assert git("log", "--format=%s", "-3", repository=plant).splitlines() == ["tile: 1 images to train/good"] * 3


def test_known_images_are_left_out_by_choice(plant: Path, tmp_path: Path) -> None:
    known = shutil.copy(next((plant / "data/train/good").iterdir()), tmp_path)
    new = tmp_path / "new"
    draw(new / "a.png", 800)
    shutil.copy(new / "a.png", new / "again.png")
    shutil.copy(known, new / "known.png")
    with pytest.raises(DataError, match=r"2 of 3 images are there already.*--skip-known"):
        call(data_app, "add", "tile", new)
    output = call(data_app, "add", "tile", new, "--skip-known").output
    assert "1 files" in output
    assert "again.png is" in output
    assert "known.png is train/good/" in output
    before = head(plant)
    assert "nothing has changed" in call(data_app, "add", "tile", new, "--skip-known").output
    assert head(plant) == before


def test_images_are_removed_by_path_hash_or_content_with_their_masks(plant: Path, tmp_path: Path) -> None:
    good = sorted((plant / "data/train/good").iterdir())
    first = head(plant)
    copy = shutil.copy(good[1], tmp_path / "seen.png")
    names = [f"train/good/{good[0].name}", str(copy), sha256_file(good[2])[:12], "test/dent/0.png"]
    output = call(data_app, "remove", "tile", *names).output
    assert "5 files" in output
    assert git("log", "--format=%s", "-1", repository=plant).strip() == "tile: 4 images removed"
    assert git("status", "--porcelain", repository=plant) == ""
    assert not (plant / "data/ground_truth").exists()
    assert not (plant / ".git/csflow/removed").exists()
    manifest, _ = materialise(load_line("tile"), Workspace(tmp_path / "fresh"))
    assert len(manifest) == 10
    assert git("show", f"{first}:data.dvc", repository=plant) != git("show", "HEAD:data.dvc", repository=plant)


def test_a_refused_removal_changes_nothing(plant: Path, tmp_path: Path) -> None:
    before = head(plant), files_of(plant / "data")
    some = [f"train/good/{path.name}" for path in (plant / "data/train/good").iterdir()]
    mask(tmp_path / "other.png")
    for names, message in (
        ([some[0], "train/good/none.png"], r"1 of 2 names stand for no image"),
        (["deadbeef"], r"stand for no image"),
        ([str(tmp_path / "other.png")], r"stand for no image"),
        (some, r"No images in|data gate refuses"),
    ):
        with pytest.raises(DataError, match=message):
            call(data_app, "remove", "tile", *names)
        assert (head(plant), files_of(plant / "data")) == before
        assert git("status", "--porcelain", repository=plant) == ""


def test_a_killed_removal_is_undone(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of a removal, as a kill would leave it."""
    before = files_of(plant / "data")
    change = journal.ImageChange.of(
        plant, "data", command="csflow data remove", message="m", added=[], removed=["data/test/dent/0.png",
        "data/ground_truth/dent/0_mask.png"],
    )  # fmt: skip
    journal.begin(plant, change)
    journal.set_aside(plant, change)
    assert files_of(plant / "data") != before
    assert "undone" in call(data_app, "repair", "tile").output
    assert files_of(plant / "data") == before
