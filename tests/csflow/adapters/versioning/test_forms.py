"""Forms of repositories and ``.dvc`` files that people have, and every way in which they are broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csflow.adapters.versioning import add_and_push, checkout, create_data_repository, open_working_copy
from csflow.adapters.versioning.git import INHERITED, git
from csflow.adapters.versioning.local_folders import repository_folders
from csflow.adapters.versioning.tracked import tracked_folder
from csflow.config import DataConfig
from csflow.errors import DataError
from tests.csflow.adapters.versioning.files import files_of, write

pytestmark = pytest.mark.slow

TILE = {"train/good/a.png": "a", "test/crack/x.png": "x"}
MD5 = "0123456789abcdef0123456789abcdef.dir"
NAMED = ("-c", "user.name=t", "-c", "user.email=t@example.com")


def record(repository: Path, message: str = "change") -> str:
    git("add", "--all", repository=repository)
    git(*NAMED, "commit", "--quiet", "--allow-empty", "--message", message, repository=repository)
    return git("rev-parse", "HEAD", repository=repository).strip()


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two DVC repositories in subfolders, one of them for images; only read by the tests."""
    root = tmp_path_factory.mktemp("mono")
    repository = root / "plant"
    repository.mkdir()
    git("init", "--quiet", "--initial-branch=main", repository=repository)
    for name in ("vision", "audio"):
        (repository / name).mkdir()
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--subdir"], cwd=repository / name, check=True)
        (repository / name / ".dvc" / "config").write_text(
            f"[core]\n    remote = r\n['remote \"r\"']\n    url = ../../../{name}-remote\n"
        )
    record(repository, "two DVC repositories")
    write(repository / "vision" / "data" / "tile", TILE)
    add_and_push(repository, "vision/data", "images")
    return repository


@pytest.fixture
def clone(mono: Path) -> Path:
    target = mono.parent / f"clone-{len(list(mono.parent.iterdir()))}"
    git("clone", "--quiet", f"file://{mono}", str(target))
    return target


def test_a_dvc_repository_in_a_subfolder_is_checked_out(clone: Path, tmp_path: Path) -> None:
    assert files_of(checkout(DataConfig(repo=str(clone), path="vision/data/tile"), tmp_path).root) == TILE
    whole = checkout(DataConfig(repo=f"file://{clone}", path="vision/data"), tmp_path)
    assert files_of(whole.root) == {f"tile/{name}": content for name, content in TILE.items()}
    assert not (clone / "vision" / "data").exists()


def test_images_are_added_to_a_dvc_repository_in_a_subfolder(clone: Path, tmp_path: Path) -> None:
    data = DataConfig(repo=str(clone), path="vision/data/tile")
    copy = open_working_copy(data)
    assert (copy.tracked, files_of(copy.root)) == ("vision/data", TILE)
    write(copy.root, {"train/good/b.png": "b"})
    add_and_push(copy.repository, copy.tracked, "one more")
    assert git("status", "--porcelain", repository=clone) == ""
    shutil.rmtree(clone / "vision" / ".dvc" / "cache")
    assert files_of(checkout(data, tmp_path).root) == TILE | {"train/good/b.png": "b"}


def test_containers_get_the_folders_of_the_subfolders_dvc(clone: Path) -> None:
    folders = repository_folders(DataConfig(repo=str(clone), path="vision/data"))
    assert clone.parent / "vision-remote" in folders.read
    assert clone / "vision" / ".dvc" / "cache" in folders.written


def test_the_subfolder_itself_is_no_repository(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a repository itself but inside of"):
        checkout(DataConfig(repo=str(clone / "vision"), path="data"), tmp_path)


@pytest.mark.parametrize("damage", ["listing gone", "listing cut", "listing of something else", "remote gone"])
def test_a_list_of_files_that_is_lost_is_named_with_the_remedy(clone: Path, tmp_path: Path, damage: str) -> None:
    remote = tmp_path / "remote"
    shutil.copytree(clone.parent / "vision-remote", remote)
    (clone / "vision/.dvc/config.local").write_text(f"['remote \"r\"']\n    url = {remote}\n")
    tracked = tracked_folder(clone, "HEAD", "vision/data")
    (listing,) = remote.rglob(tracked.md5[2:])
    listing.chmod(0o644)
    if damage == "listing gone":
        listing.unlink()
    elif damage == "remote gone":
        shutil.rmtree(remote)
    else:
        listing.write_text('[{"md' if damage == "listing cut" else '{"a": 1}')
    words = {
        "listing gone": r"\.dir is missing in the remote\. Where the images are complete, run 'dvc push'",
        "remote gone": f"the remote {remote} is not there. Mount it",
    }.get(damage, r"damaged|corrupted.*run 'dvc push'; delete damaged copies")
    with pytest.raises(DataError, match=words) as caught:
        checkout(DataConfig(repo=str(clone), path="vision/data"), tmp_path / "out")
    assert "Errno" not in str(caught.value)


def test_a_remote_that_is_configured_for_one_machine_is_not_cloned(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone / "vision" / ".dvc"
    (folder / "config").rename(folder / "config.local")
    (folder / "config").touch()
    record(clone)
    assert files_of(checkout(DataConfig(repo=str(clone), path="vision/data/tile"), tmp_path / "here").root) == TILE
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{clone.parent}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "ssh://images.example/")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    with pytest.raises(DataError, match=r"config\.local is not cloned: run 'dvc remote add --default"):
        checkout(DataConfig(repo=f"ssh://images.example/{clone.name}", path="vision/data"), tmp_path / "there")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository with an empty DVC repository, into which a test writes ``.dvc`` files by hand."""
    repository = tmp_path / "plant"
    repository.mkdir()
    git("init", "--quiet", "--initial-branch=main", repository=repository)
    write(repository, {".dvc/config": ""})
    record(repository)
    return repository


def found(repository: Path, text: str | bytes, name: str = "data.dvc") -> str:
    """The digest under which the folder ``data`` is tracked by a ``.dvc`` file with this text."""
    file = repository / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return tracked_folder(repository, record(repository), "data").md5


@pytest.mark.parametrize(
    "text",
    [
        f"outs:\n- md5: {MD5}\n  hash: md5\n  path: data\n",
        f"outs:\n- {{md5: {MD5}, hash: md5, path: data/, nfiles: 2, size: 9, remote: x, push: no, meta: {{a: 1}}}}\n",
        f"frozen: true\ndeps: [{{path: x, repo: {{url: u}}}}]\nouts: [{{md5: {MD5}, hash: md5, path: data}}]\n",
        f"outs:\n- {{path: other, md5: 1, hash: md5}}\n- {{md5: {MD5}, hash: md5, path: ./data}}\n",
        f"wdir: .\nouts: [{{md5: {MD5}, hash: md5, path: data}}]\n",
        f"# by hand\r\nouts:\r\n- md5: {MD5}\r\n  hash: md5\r\n  path: data\r\n",
    ],
)
def test_every_form_of_dvc_file_is_read(bare: Path, text: str) -> None:
    assert found(bare, text) == MD5


def test_a_dvc_file_of_another_name_or_place_is_read(bare: Path) -> None:
    entry = f"{{md5: {MD5}, hash: md5, path: data}}"
    assert found(bare, f"outs: [{entry}]\n", name="images.dvc") == MD5
    (bare / "images.dvc").unlink()
    with pytest.raises(DataError, match="no .dvc file in its parent folders"):
        found(bare, f"wdir: ..\nouts: [{entry}]\n", name="deep/images.dvc")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outs:\n- data\n", "'data' in 'outs' has no text 'path'"),
        ("outs: data\n", "no list 'outs'"),
        ("outs:\n", "no list 'outs'"),
        ("outs: {path: data}\n", "no list 'outs'"),
        ("outs: [null]\n", "None in 'outs' has no text 'path'"),
        (f"outs: [{{md5: {MD5}, hash: md5}}]\n", "has no text 'path'"),
        (f"outs: [{{md5: {MD5}, hash: md5, path: 5}}]\n", "has no text 'path'"),
        (f"outs: [{{md5: {MD5}, hash: md5, path: null}}]\n", "has no text 'path'"),
        (f"wdir: 5\nouts: [{{md5: {MD5}, hash: md5, path: data}}]\n", "its 'wdir' is 5"),
        ("outs: [{md5: 12345, hash: md5, path: data}]\n", "with md5 12345, expected a folder recorded by DVC 3"),
        ("outs: [{md5: null, hash: md5, path: data}]\n", "with md5 'missing', expected a folder"),
        ("outs: [{md5: ../../x.dir, hash: md5, path: data}]\n", "with md5 '../../x.dir', expected a folder"),
        (f"outs: [{{md5: {MD5[:32]}, hash: md5, path: data}}]\n", "expected a folder recorded by DVC 3"),
        (f"outs: [{{md5: {MD5}, path: data}}]\n", "dvc cache migrate"),
        ("outs: [{path: data, cache: false}]\n", "cache: false"),
        ("outs:\n- path: data\n  files:\n  - {relpath: a.png, md5: x}\n", "not version_aware"),
        ("", "no list 'outs'"),
        ("just words", "no list 'outs'"),
        ("- a\n- b\n", "no list 'outs'"),
        ("outs: [", "is not YAML \\(line 1\\)"),
        ("outs:\n\t- path: data\n", "is not YAML \\(line 2\\)"),
        ("when: 2024-99-99\n", "is not YAML"),
        ("a: !!python/object:os.system x\n", "is not YAML"),
        ("[" * 2000, "is not YAML"),
        (b"outs: \xff\xfe\n", "not a .dvc file"),
        (b"\x00\x01\x02", "is not YAML"),
        ("<<<<<<< HEAD\nouts: []\n=======\nouts: []\n>>>>>>> other\n", "marks of a merge conflict"),
    ],
)
def test_a_broken_dvc_file_is_named_in_one_sentence(bare: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        found(bare, text)
    assert "data.dvc" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_dvc_file_of_something_else_does_no_harm(bare: Path) -> None:
    write(bare, {"cups.dvc": "outs:\n- cups\n", "a.dvc": "outs: ["})
    assert found(bare, f"outs: [{{md5: {MD5}, hash: md5, path: data}}]\n") == MD5


def test_a_folder_that_is_called_like_a_dvc_file_is_none(bare: Path) -> None:
    write(bare, {"old.dvc/readme.txt": "a folder"})
    assert found(bare, f"outs: [{{md5: {MD5}, hash: md5, path: data}}]\n") == MD5


def test_without_a_dvc_repository_there_is_nothing_to_fetch_from(bare: Path) -> None:
    (bare / ".dvc/config").unlink()
    with pytest.raises(DataError, match="belongs to no DVC repository. Run 'dvc init'"):
        found(bare, f"outs: [{{md5: {MD5}, hash: md5, path: data}}]\n")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("hooked") / "plant"
    create_data_repository(repository)
    write(repository / "data", TILE)
    add_and_push(repository, "data", "images")
    return repository


@pytest.mark.parametrize("value", ["/elsewhere/.git", "1"])
def test_variables_of_a_hook_change_nothing(
    plain: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``csflow data add`` and a checkout out of a hook, a rebase or a worktree of another repository."""
    told = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=True)
    from_configuration = {"GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"}  # a person's way of setting options
    hooks = set(told.stdout.split()) - from_configuration
    assert hooks <= INHERITED
    for name in INHERITED:
        monkeypatch.setenv(name, value)
    data = DataConfig(repo=str(plain), path="data")
    copy = open_working_copy(data)
    name = f"train/good/{len(value)}.png"
    write(copy.root, {name: value})
    recorded = add_and_push(copy.repository, copy.tracked, "one more")
    assert recorded.commit == git("rev-parse", "HEAD", repository=plain).strip()
    result = checkout(data, tmp_path)
    assert (result.git_rev, files_of(result.root)[name]) == (recorded.commit, value)
    assert os.environ["GIT_DIR"] == value, "it is left to the caller"


def test_a_dvc_file_that_names_several_folders_is_kept_when_images_are_added(plain: Path, tmp_path: Path) -> None:
    clone = plain.parent / "renamed"
    git("clone", "--quiet", str(plain), str(clone))
    (clone / "data.dvc").rename(clone / "images.dvc")
    record(clone, "renamed")
    copy = open_working_copy(DataConfig(repo=str(clone), path="data"))
    write(copy.root, {"train/good/new.png": "new"})
    add_and_push(copy.repository, copy.tracked, "one more")
    assert sorted(path.name for path in clone.glob("*.dvc") if path.is_file()) == ["images.dvc"]
    assert "train/good/new.png" in files_of(checkout(DataConfig(repo=str(clone), path="data"), tmp_path).root)
