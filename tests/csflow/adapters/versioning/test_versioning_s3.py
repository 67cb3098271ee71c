"""A data repository whose images lie in an object store: real git, real DVC, S3 over HTTP, environment only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.versioning import add_and_push, checkout, create_data_repository, open_working_copy
from csflow.adapters.versioning.git import git
from csflow.config import DataConfig
from csflow.errors import DataError
from tests.csflow.adapters.versioning.files import files_of, write
from tests.servers import ObjectStore, free_port, object_store

TILE = {"train/good/a.png": "a", "train/good/部品 1.png": "b", "test/crack/x.png": "x"}


def clone_of(repository: Path, target: Path) -> Path:
    """A fresh clone: neither images nor a cache of them."""
    git("clone", "--quiet", f"file://{repository}", str(target))
    return target


def point_to(repository: Path, url: str) -> None:
    (repository / ".dvc/config.local").write_text(f"['remote \"storage\"']\n    url = {url}\n")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a pod is given, and nothing that lies in the home of whoever runs the test."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-file"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def origin(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data repository with one line; only read by the tests."""
    repository = tmp_path_factory.mktemp("origin") / "plant"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        create_data_repository(repository, f"{store.uri}/plant")
        write(repository / "data/tile", TILE)
        add_and_push(repository, "data", "a line")
    return repository


def test_images_go_to_the_bucket_and_come_back_in_a_fresh_clone(
    origin: Path, store: ObjectStore, tmp_path: Path
) -> None:
    keys = store.keys("plant/files/md5/")
    assert len(keys) == len(TILE) + 1, "each image and the list of them"
    assert {store.read(key) for key in keys if not key.endswith(".dir")} == {b"a", b"b", b"x"}
    clone = clone_of(origin, tmp_path / "clone")
    result = checkout(DataConfig(repo=str(clone), path="data/tile"), tmp_path / "w")
    assert files_of(result.root) == TILE
    committed = (origin / ".dvc/config").read_text() + (origin / "data.dvc").read_text()
    for secret in store.environment.values():
        assert secret not in committed, "the environment alone says where the store is and who may enter"
    assert not (clone / ".dvc/config.local").exists()


def test_more_images_are_pushed_from_a_clone(origin: Path, store: ObjectStore, tmp_path: Path) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    data = DataConfig(repo=str(clone), path="data/tile")
    copy = open_working_copy(data)
    assert files_of(copy.root) == TILE, "pulled from the store"
    write(copy.root, {"train/good/new.png": "new"})
    recorded = add_and_push(copy.repository, copy.tracked, "one more")
    shutil.rmtree(clone / ".dvc/cache")
    result = checkout(data, tmp_path / "w")
    assert (result.git_rev, result.data_md5) == (recorded.commit, recorded.md5)
    assert files_of(result.root) == {**TILE, "train/good/new.png": "new"}


def test_a_damaged_object_in_the_bucket_is_not_used(origin: Path, store: ObjectStore, tmp_path: Path) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    point_to(clone, f"{store.uri}/damaged")
    copied = {key.replace("plant/", "damaged/", 1): store.read(key) for key in store.keys("plant/")}
    for key, content in copied.items():
        store.write(key, b"y" if content == b"x" else content)
    with pytest.raises(DataError, match=r"1 of 3 files cannot be used: data/tile/test/crack/x\.png \(damaged\)"):
        checkout(DataConfig(repo=str(clone), path="data/tile"), tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir() if path.name != ".dvc-site"] == []


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            "no credentials",
            r"no complete credentials for s3://\w+/plant at .* Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            "half of them",
            r"no complete credentials for s3://\w+/plant at .* Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            "no bucket",
            r"has no bucket s3://elsewhere\. Create it, or correct the remote's url in \.dvc/config",
        ),
        ("nothing pushed", r"factory/empty/files/md5/\w+/\w+\.dir is missing in the remote.* 'dvc push'"),
        ("no server", r"http://127\.0\.0\.1:\d+ does not answer.* Check AWS_ENDPOINT_URL"),
    ],
)
def test_what_keeps_the_images_away_is_explained(
    origin: Path, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str, message: str
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    match problem:
        case "no credentials":
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        case "half of them":
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        case "no bucket":
            point_to(clone, "s3://elsewhere/plant")
        case "nothing pushed":
            point_to(clone, f"{store.uri}/empty")
        case "no server":
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match=rf"Reading data at \w+ from .* failed: .*{message}"):
        checkout(DataConfig(repo=str(clone), path="data/tile"), tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir() if path.name != ".dvc-site"] == []


def test_a_store_that_refuses_is_explained_to_readers_and_writers(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = clone_of(origin, tmp_path / "clone")
    before = (clone / "data.dvc").read_bytes(), git("rev-parse", "HEAD", repository=clone)
    refused = r"denies access to s3://factory/plant \(.*Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    with object_store(tmp_path, checks_credentials=True) as strict:
        monkeypatch.setenv("AWS_ENDPOINT_URL", strict.endpoint)
        with pytest.raises(DataError, match=refused):
            checkout(DataConfig(repo=str(clone), path="data/tile"), tmp_path / "w")
        write(clone / "data/tile", {**TILE, "train/good/new.png": "new"})
        with pytest.raises(DataError, match=rf"Recording data in .* failed: .*{refused}"):
            add_and_push(clone, "data", "one more")
    assert ((clone / "data.dvc").read_bytes(), git("rev-parse", "HEAD", repository=clone)) == before


def test_an_address_with_credentials_is_refused_because_it_would_be_committed(tmp_path: Path) -> None:
    for address in ("s3://key:secret@bucket/plant", "s3://key@bucket/plant", "https://me:secret@images.example/plant"):
        with pytest.raises(DataError, match=r"contains credentials.* Leave them out") as raised:
            create_data_repository(tmp_path / "plant", address)
        assert "secret@" not in str(raised.value)
    assert not (tmp_path / "plant").exists()
    create_data_repository(tmp_path / "plant", "ssh://me@images.example/plant")


@pytest.mark.slow
def test_import_and_data_add_work_against_the_bucket(store: ObjectStore, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from csflow.cli.app import app

    def draw(folder: Path, names: range) -> Path:
        folder.mkdir()
        for number in names:
            noise = np.random.default_rng(number).integers(40, 200, (64, 64), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
        return folder

    runner, repository = CliRunner(), tmp_path / "plant"
    good = draw(tmp_path / "good", range(24))
    words = ["import", "folder", str(repository), "--good", str(good), "--track", "--remote", f"{store.uri}/imported"]
    imported = runner.invoke(app, words)
    assert imported.exit_code == 0, imported.output
    path = next(line.split()[1] for line in imported.output.splitlines() if line.strip().startswith("path:"))
    assert len(store.keys("imported/files/md5/")) == 25
    yaml = tmp_path / "plates.yaml"
    quality = "{min_train: 5, min_test_good: 1, min_test_defective: 0}"
    yaml.write_text(f"line: plates\ndata: {{repo: {repository}, rev: HEAD, path: {path}}}\nquality: {quality}\n")
    added = runner.invoke(app, ["data", "add", str(yaml), str(draw(tmp_path / "more", range(24, 27)))])
    assert added.exit_code == 0, added.output
    assert len(store.keys("imported/files/md5/")) == 25 + 3 + 1, "three images and a new list"
    clone = clone_of(repository, tmp_path / "clone")
    fetched = checkout(DataConfig(repo=str(clone), path=path), tmp_path / "w")
    assert len(list(fetched.root.rglob("*.png"))) == 27
