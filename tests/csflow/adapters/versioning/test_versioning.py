"""Data revisions with real git and DVC: what is committed comes out, checked, or nothing does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csflow.adapters.versioning import (
    Recorded,
    add_and_push,
    checkout,
    create_data_repository,
    open_working_copy,
)
from csflow.adapters.versioning.checkout import LISTING
from csflow.adapters.versioning.git import git
from csflow.config import DataConfig
from csflow.errors import DataError
from tests.csflow.adapters.versioning.files import files_of, write
from tests.damage import damages, inflict, remove

TILE = {"train/good/a.png": "a", "train/good/部品 1.png": "b", "test/crack/x.png": "x"}
CUP = {"train/good/c.png": "c"}


def objects(remote: Path, content: str) -> list[Path]:
    return [path for path in remote.rglob("*") if path.is_file() and path.read_text() == content]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """A data repository with two lines and a line of its own below ``deep``; only read by the tests."""
    repository = tmp_path_factory.mktemp("origin") / "plant"
    with pytest.MonkeyPatch.context() as patch:
        # As in a bare container: no home, no identity, and called from another repository's hook.
        for name in ("HOME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "GIT_AUTHOR_NAME", "EMAIL"):
            patch.delenv(name, raising=False)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_DIR", "/nonexistent")
        create_data_repository(repository)
        write(repository / "data/tile", TILE)
        write(repository / "data/cup", CUP)
        recorded = add_and_push(repository, "data", "two lines")
    return repository, recorded


@pytest.fixture
def clone(origin: tuple[Path, Recorded]) -> Path:
    """A fresh shallow clone beside the original: same relative remote, no cache, no images."""
    target = origin[0].parent / f"clone-{time.monotonic_ns()}"
    git("clone", "--quiet", "--depth", "1", f"file://{origin[0]}", str(target))
    return target


@pytest.fixture
def damaged_remote(clone: Path, tmp_path: Path) -> Path:
    """Point the clone at a copy of the remote that a test may damage."""
    remote = tmp_path / "remote"
    subprocess.run(["cp", "-r", str(clone.parent / "plant-remote"), str(remote)], check=True)
    (clone / ".dvc/config.local").write_text(f"['remote \"storage\"']\n    url = {remote}\n")
    for path in remote.rglob("*"):
        path.chmod(0o755)
    return remote


def test_new_repository_is_complete(origin: tuple[Path, Recorded]) -> None:
    repository, recorded = origin
    assert git("status", "--porcelain", repository=repository) == ""
    assert git("log", "--format=%an %s", repository=repository).splitlines() == [
        "csflow two lines",
        "csflow Data repository",
    ]
    assert git("ls-files", repository=repository).split() == [
        ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "data.dvc",
    ]  # fmt: skip
    assert f"md5: {recorded.md5}" in (repository / "data.dvc").read_text()
    assert recorded.commit == git("rev-parse", "HEAD", repository=repository).strip()
    config = (repository / ".dvc/config").read_text()
    assert "analytics = false" in config
    assert "verify = true" in config
    assert "../../plant-remote" in config
    with pytest.raises(DataError, match="is neither empty"):
        create_data_repository(repository)
    assert (repository / "data.dvc").exists()


def test_checkout_from_a_shallow_clone_places_the_line_alone(
    origin: tuple[Path, Recorded], clone: Path, tmp_path: Path
) -> None:
    target = tmp_path / "data/tile"
    result = checkout(DataConfig(repo=str(clone), path="data/tile"), target)
    assert files_of(result.root) == TILE
    assert (result.git_rev, result.data_md5) == (origin[1].commit, origin[1].md5)
    assert not (clone / "data").exists()
    assert not (clone / ".dvc/cache").exists()
    assert git("status", "--porcelain", repository=clone) == ""
    whole = checkout(DataConfig(repo=f"file://{clone}", rev="main", path="./data/"), tmp_path / "all")
    assert files_of(whole.root) == {f"tile/{k}": v for k, v in TILE.items()} | {f"cup/{k}": v for k, v in CUP.items()}


def test_second_checkout_needs_no_dvc_and_mends_what_was_changed(clone: Path, tmp_path: Path) -> None:
    data = DataConfig(repo=str(clone), path="data/tile")
    first = checkout(data, tmp_path)
    code = (
        "import sys, time, pathlib; from csflow.config import DataConfig\n"
        "from csflow.adapters.versioning import checkout\nstart = time.monotonic()\n"
        f"r = checkout(DataConfig(repo={str(clone)!r}, path='data/tile'), pathlib.Path({str(tmp_path)!r}))\n"
        "assert 'dvc' not in sys.modules\nprint(r.root, time.monotonic() - start)"
    )
    root, seconds = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert root == str(first.root)
    assert float(seconds) < 1
    for name, content in (("train/good/a.png", "tampered"), ("train/good/extra.png", "smuggled in")):
        write(first.root, {name: content})
        assert files_of(checkout(data, tmp_path).root) == TILE
    (first.root / "test/crack/x.png").unlink()
    assert files_of(checkout(data, tmp_path).root) == TILE


def test_a_damaged_checkout_is_put_aside_and_made_again(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(repo=str(clone), path="data/tile")
    first = checkout(data, tmp_path)
    folder = first.root.parent
    listing, image = folder / LISTING, first.root / "test/crack/x.png"
    for file in (listing, image):
        for damage, content in damages(file.read_bytes(), flips=3):
            inflict(file, content)
            capsys.readouterr()
            assert files_of(checkout(data, tmp_path).root) == TILE, damage
            assert f"Put aside as {folder.name}.damaged" in capsys.readouterr().err, damage
    remove(folder)
    folder.write_text("stray")
    assert files_of(checkout(data, tmp_path).root) == TILE


def test_a_checkout_of_an_older_csflow_is_used(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(repo=str(clone), path="data/tile")
    listing = checkout(data, tmp_path).root.parent / LISTING
    listing.write_text(json.dumps(json.loads(listing.read_text())["files"], indent=2))
    before = listing.stat().st_ino
    assert files_of(checkout(data, tmp_path).root) == TILE
    assert (listing.stat().st_ino, capsys.readouterr().err.count("damaged")) == (before, 0)


def test_head_is_what_is_committed(origin: tuple[Path, Recorded], clone: Path, tmp_path: Path) -> None:
    data = DataConfig(repo=str(clone), path="data/tile")
    committed = (clone / "data.dvc").read_text()
    (clone / "data.dvc").write_text(committed.replace(origin[1].md5, "0" * 32 + ".dir"))
    assert checkout(data, tmp_path).data_md5 == origin[1].md5
    with pytest.raises(DataError, match=r"data\.dvc has uncommitted changes"):
        open_working_copy(data)


def test_new_commit_is_seen_and_the_old_one_stays(clone: Path, damaged_remote: Path, tmp_path: Path) -> None:
    data = DataConfig(repo=str(clone), path="data/tile")
    before = checkout(data, tmp_path / "w")
    copy = open_working_copy(data)
    assert files_of(copy.root) == TILE
    write(copy.root, {"train/good/new.png": "new"})
    with pytest.raises(DataError, match=r"differs from the committed state: tile/train/good/new\.png"):
        open_working_copy(data)
    write(clone, {"unrelated.txt": "of the user"})
    git("add", "unrelated.txt", repository=clone)
    recorded = add_and_push(copy.repository, copy.tracked, "one more")
    assert git("show", "--format=%s", "--name-only", "HEAD", repository=clone).split() == ["one", "more", "data.dvc"]
    assert git("status", "--porcelain", repository=clone) == "A  unrelated.txt\n"
    after = checkout(data, tmp_path / "w")
    assert (after.git_rev, after.data_md5) == (recorded.commit, recorded.md5)
    assert files_of(after.root) == {**TILE, "train/good/new.png": "new"}
    old = checkout(data.model_copy(update={"rev": before.git_rev}), tmp_path / "w")
    assert old == before
    assert files_of(old.root) == TILE
    with pytest.raises(DataError, match=r"is not HEAD of"):
        open_working_copy(data.model_copy(update={"rev": before.git_rev}))


def test_failed_push_leaves_no_commit(clone: Path, damaged_remote: Path, tmp_path: Path) -> None:
    copy = open_working_copy(DataConfig(repo=str(clone), path="data/tile"))
    write(copy.root, {"train/good/new.png": "new"})
    before = (clone / "data.dvc").read_bytes(), git("rev-parse", "HEAD", repository=clone)
    (tmp_path / "file").write_text("not a folder")
    (clone / ".dvc/config.local").write_text(f"['remote \"storage\"']\n    url = {tmp_path / 'file'}\n")
    with pytest.raises(DataError, match=r"Recording data in .* failed"):
        add_and_push(clone, "data", "one more")
    assert ((clone / "data.dvc").read_bytes(), git("rev-parse", "HEAD", repository=clone)) == before
    assert git("status", "--porcelain", repository=clone) == ""


@pytest.mark.parametrize("damage", ["missing file", "changed file", "missing list", "changed list", "all missing"])
def test_damaged_remote_gives_nothing(clone: Path, damaged_remote: Path, tmp_path: Path, damage: str) -> None:
    (listing,) = damaged_remote.rglob("*.dir")
    (victim,) = objects(damaged_remote, "x")
    expected = r"1 of 3 files cannot be used: data/tile/test/crack/x\.png \((missing|damaged)\).*dvc push"
    match damage:
        case "missing file":
            victim.unlink()
        case "changed file":
            victim.write_text("y")
        case "missing list":
            listing.unlink()
            expected = r"Reading data at \w+ from .* failed"
        case "changed list":
            entries = [entry for entry in json.loads(listing.read_text()) if "crack" not in entry["relpath"]]
            listing.write_text(json.dumps(entries))
            expected = r"list of files \w+\.dir is damaged"
        case "all missing":
            (clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /nonexistent\n")
            expected = r"Reading data at \w+ from .* failed"
    with pytest.raises(DataError, match=expected):
        checkout(DataConfig(repo=str(clone), path="data/tile"), tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir() if path.name != ".dvc-site"] == []
    others = checkout(DataConfig(repo=str(clone), path="data/cup"), tmp_path / "w") if "file" in damage else None
    assert others is None or files_of(others.root) == CUP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rev": "v9"}, r"no revision 'v9'. The clone is shallow: run 'git fetch --unshallow'"),
        ({"rev": "--help"}, r"no revision '--help'"),
        ({"path": "images/tile"}, r"does not track 'images/tile' .*tracked there: data"),
        ({"path": "data/cop"}, r"has no folder 'cop', only cup, tile"),
        ({"path": "../x"}, r"'../x' is not a folder inside the repository"),
        ({"repo": "/nonexistent"}, r"/nonexistent does not exist. Correct data\.repo"),
    ],
)
def test_wrong_names_are_explained(clone: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    data = DataConfig(repo=str(clone), path="data/tile").model_copy(update=changes)
    with pytest.raises(DataError, match=message):
        checkout(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".dvc-site"] == []


def test_folder_without_git_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a git repository"):
        checkout(DataConfig(repo=str(tmp_path), path="data"), tmp_path / "w")


def test_repository_by_url_with_its_remote_inside(
    clone: Path, damaged_remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote travels with the repository: only a clone that is checked out can reach it."""
    damaged_remote.rename(clone / "store")
    (clone / ".dvc/config.local").unlink()
    config = clone / ".dvc/config"
    config.write_text(config.read_text().replace("../../plant-remote", "../store"))
    git("add", "--force", "store", ".dvc/config", repository=clone)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "store", repository=clone)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{clone.parent}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "ssh://images.example/")
    data = DataConfig(repo=f"ssh://images.example/{clone.name}", path="data/cup")
    first = checkout(data, tmp_path / "w")
    assert files_of(first.root) == CUP
    copy = open_working_copy(DataConfig(repo=str(clone), path="data/cup"))
    write(copy.root, {"train/good/d.png": "d"})
    second = add_and_push(clone, "data", "more")
    git("add", "--force", "store", repository=clone)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "store", repository=clone)
    assert files_of(checkout(data, tmp_path / "w").root) == {**CUP, "train/good/d.png": "d"}
    assert checkout(data, tmp_path / "w").data_md5 == second.md5
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "ssh://elsewhere.example/")
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    assert checkout(data.model_copy(update={"rev": first.git_rev}), tmp_path / "w") == first
    with pytest.raises(DataError, match="git fetch failed"):
        checkout(data, tmp_path / "w")
    with pytest.raises(DataError, match=r"Clone it"):
        open_working_copy(data)


def test_a_dvc_file_deeper_in_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "plant"
    create_data_repository(repository, str(tmp_path / "images of plant"))
    write(repository / "halls/a/tile", TILE)
    write(repository / "halls/a/cup", CUP)
    add_and_push(repository, "halls/a/cup", "cup")
    recorded = add_and_push(repository, "halls/a/tile", "tile")
    result = checkout(DataConfig(repo=str(repository), path="halls/a/tile"), tmp_path / "w")
    assert files_of(result.root) == TILE
    assert result.data_md5 == recorded.md5
    assert objects(tmp_path / "images of plant", "c")
    with pytest.raises(DataError, match=r"does not track 'halls/a'"):
        checkout(DataConfig(repo=str(repository), path="halls/a"), tmp_path / "w")
