"""Directories in the shared store, and what is said when it refuses."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from csflow.adapters.storage import Store
from csflow.errors import StorageError, StoreUnreachableError, UsageError
from csflow.files import sha256_tree
from tests.csflow.adapters.storage.conftest import BUCKET


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "detector"
    for name, content in {"config.json": b"{}", "weights/a.bin": b"a" * 1000, "weights/b.bin": b""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_without_the_variable_there_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_STORE", raising=False)
    assert Store.from_environment() is None


@pytest.mark.parametrize("uri", ["bucket/prefix", "s3://", "s3:///prefix", "gs://bucket/x"])
def test_a_store_is_a_bucket(uri: str) -> None:
    with pytest.raises(UsageError, match=r"expected s3://BUCKET/PREFIX"):
        Store(uri)


@pytest.mark.parametrize(("uri", "key"), [(f"s3://{BUCKET}", "x"), (f"s3://{BUCKET}/a/b/", "a/b/x")])
def test_keys_are_below_the_prefix(s3: Any, uri: str, key: str) -> None:
    store = Store(uri)
    store.put("x", b"1")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == [key]
    assert [(found.key, found.size) for found in store.list("")] == [("x", 1)]
    store.delete(["x", "never there"])
    assert list(store.list("")) == []


def test_a_directory_goes_there_and_back(store: Store, folder: Path, tmp_path: Path) -> None:
    assert store.upload_directory(folder, "detectors/tiles/d") == 3
    assert store.upload_directory(folder, "detectors/tiles/d") == 0
    store.download_directory("detectors/tiles/d", tmp_path / "back")
    assert sha256_tree(tmp_path / "back") == sha256_tree(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "detector"]
    under = {found.key for found in store.list("detectors/tiles/d/")}
    assert under == {f"detectors/tiles/d/{name}" for name in ("config.json", "weights/a.bin", "weights/b.bin")}


def test_half_a_directory_does_not_count_and_is_completed(store: Store, folder: Path, tmp_path: Path) -> None:
    store.upload_directory(folder, "d")
    store.delete(["d.json"])
    with pytest.raises(StorageError, match=r"no whole directory: its index d.json is missing"):
        store.download_directory("d", tmp_path / "back")
    store.delete(["d/weights/a.bin"])
    assert store.upload_directory(folder, "d") == 1, "only what is missing is sent"
    store.download_directory("d", tmp_path / "back")
    assert sha256_tree(tmp_path / "back") == sha256_tree(folder)


def test_a_damaged_file_spoils_the_directory(store: Store, folder: Path, tmp_path: Path) -> None:
    store.upload_directory(folder, "d")
    store.put("d/weights/a.bin", b"other bytes, whole by themselves")
    with pytest.raises(StorageError, match=r"weights/a.bin is damaged"):
        store.download_directory("d", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert store.upload_directory(folder, "d") == 0, "the index says that it is whole; deleting the object mends it"
    store.delete(["d.json"])
    assert store.upload_directory(folder, "d") == 1
    store.download_directory("d", tmp_path / "back")


def test_many_objects_are_listed_and_deleted(store: Store, s3: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: s3.put_object(Bucket=BUCKET, Key=f"line-7/many/{number:04d}"), range(1003)))
    names = [found.key for found in store.list("many/")]
    assert names == [f"many/{number:04d}" for number in range(1003)]
    store.delete(names)
    assert list(store.list("many/")) == []


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("AccessDenied", 403, r"access denied.*s3:PutObject.*'factory'"),
        ("InvalidAccessKeyId", 403, r"does not accept the credentials.*AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, r"does not accept the credentials.*AWS_SECRET_ACCESS_KEY"),
        ("NoSuchBucket", 404, r"no bucket 'factory'.*CSFLOW_STORE"),
        ("MethodNotAllowed", 405, r"Cannot upload s3://factory/line-7/key"),
    ],
)
def test_what_a_store_refuses_has_a_remedy(refusing: Any, code: str, status: int, said: str) -> None:
    store = Store("s3://factory/line-7", endpoint_url=refusing(code, status))
    with pytest.raises(StorageError, match=said) as refused:
        store.put("key", b"content")
    assert not isinstance(refused.value, StoreUnreachableError)


def test_a_missing_bucket_is_named(s3: Any) -> None:
    with pytest.raises(StorageError, match="no bucket 'elsewhere'"):
        Store("s3://elsewhere").put("key", b"")
    with pytest.raises(StorageError, match="no bucket 'elsewhere'"):
        list(Store("s3://elsewhere").list(""))


def test_an_overloaded_store_is_named(refusing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csflow.adapters.storage.store._ATTEMPTS", 2)
    store = Store("s3://factory", endpoint_url=refusing("SlowDown", 503))
    with pytest.raises(StoreUnreachableError, match=r"overloaded or failing \(SlowDown\)"):
        store.get("key")


def test_a_store_that_is_not_there(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csflow.adapters.storage.store._ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(StoreUnreachableError, match="Check the network and AWS_ENDPOINT_URL"):
        Store("s3://factory", endpoint_url=f"http://127.0.0.1:{port}").get("key")


def test_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="there are no credentials. Set AWS_ACCESS_KEY_ID"):
        Store("s3://factory").put("key", b"")
