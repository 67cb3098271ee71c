"""Publishing a registered detector: here and in a store over HTTP, by digest, never over other content."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.versions import Version
from csflow.adapters.storage import Store
from csflow.errors import RegistryError, StorageError
from csflow.release.publication import publish
from csflow.runs.services import Services
from csflow.system.files import sha256_tree, write_atomic
from csflow.system.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def version(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Version:
    """A version whose detector the registry has laid down already."""
    made = workspace.root / "made"
    (made / "deep").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "deep/model.safetensors").write_bytes(bytes(70_000))
    digest = sha256_tree(made)
    folder = workspace.detectors / "tiles" / digest
    folder.parent.mkdir(parents=True)
    made.rename(folder)
    monkeypatch.setattr(Registry, "download_detector", lambda *_: folder)
    return Version("tiles", 3, "run", datetime.now(UTC), tags={"detector_digest": digest})


def test_without_a_store_it_lies_here(workspace: Workspace, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_STORE", raising=False)
    published = publish(Services.of(workspace, store=Store.from_environment()), version)
    assert published.digest == version.tags["detector_digest"]
    assert published.uri == f"{published.folder.as_uri()}/"


def test_in_a_store_it_lies_under_its_digest(
    workspace: Workspace, version: Version, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSFLOW_STORE", f"s3://{bucket}/plant/a/")
    published, store = (
        publish(Services.of(workspace, store=Store.from_environment()), version),
        Store.from_environment(),
    )
    assert store is not None
    assert published.uri == f"s3://{bucket}/plant/a/detectors/tiles/{published.digest}/"
    # What KServe's initializer would fetch: every object below the address, and nothing else.
    prefix = f"detectors/tiles/{published.digest}/"
    for stored in store.list(prefix):
        write_atomic(tmp_path / "served" / stored.key.removeprefix(prefix), store.read(stored.key) or b"")
    assert sha256_tree(tmp_path / "served") == published.digest
    written = {stored.key: stored.modified for stored in store.list("")}
    assert publish(Services.of(workspace, store=Store.from_environment()), version) == published
    assert {stored.key: stored.modified for stored in store.list("")} == written


def test_other_content_under_the_digest_is_refused_and_left(
    workspace: Workspace, version: Version, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSFLOW_STORE", f"s3://{bucket}")
    store = Store(bucket)
    key = f"detectors/tiles/{version.tags['detector_digest']}/config.json"
    store.write(key, b"[]")
    with pytest.raises(StorageError, match=r"config\.json has SHA-256|config\.json has .*expected"):
        publish(Services.of(workspace, store=Store.from_environment()), version)
    assert store.read(key) == b"[]"


def test_files_that_were_not_registered_are_not_uploaded(
    workspace: Workspace, version: Version, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSFLOW_STORE", f"s3://{bucket}")
    other = Version("tiles", 3, "run", datetime.now(UTC), tags={"detector_digest": "0" * 64})
    with pytest.raises(RegistryError, match="Do not serve it"):
        publish(Services.of(workspace, store=Store.from_environment()), other)
    assert list(Store(bucket).list("")) == []


def test_a_store_that_is_not_there_is_an_error(
    workspace: Workspace, version: Version, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSFLOW_STORE", "s3://no-such-bucket/plant")
    with pytest.raises(StorageError, match="has no bucket s3://no-such-bucket"):
        publish(Services.of(workspace, store=Store.from_environment()), version)
