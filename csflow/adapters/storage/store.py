"""Directories in the shared store; an index beside each is written last, so that half of one never counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from csflow.adapters.storage.errors import explained
from csflow.adapters.storage.objects import PART_BYTES, Objects
from csflow.errors import StorageError, UsageError
from csflow.files import new_directory, sha256_file

VARIABLE = "CSFLOW_STORE"
THREADS = 16
_ATTEMPTS = 5
_DELETED_AT_ONCE = 1000


@dataclass(frozen=True)
class Stored:
    """An object of the store.

    Attributes:
        key: Below the store's prefix.
        size: Bytes.
        modified: When it was written, UTC.
    """

    key: str
    size: int
    modified: datetime


class Store:
    """A prefix of a bucket; keys are relative to it.

    Args:
        uri: ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.
        endpoint_url: Address of an S3-compatible service; ``AWS_ENDPOINT_URL`` or Amazon's by default.
        part_bytes: Files above this size travel in parts of it.

    Raises:
        UsageError: If the URI names no bucket.
        StorageError: If boto3 is not installed, or there is no usable region.
    """

    def __init__(self, uri: str, *, endpoint_url: str | None = None, part_bytes: int = PART_BYTES) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not bucket:
            raise UsageError(f"{VARIABLE} is {uri!r}, expected s3://BUCKET/PREFIX.")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._bucket = bucket
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._client = _client(self.uri, endpoint_url)
        self._objects = Objects(self._client, bucket, part_bytes=part_bytes)

    @classmethod
    def from_environment(cls) -> Store | None:
        """The store that ``CSFLOW_STORE`` names; ``None`` if it is not set.

        Raises:
            UsageError: If it names no bucket.
        """
        uri = os.environ.get(VARIABLE)
        return cls(uri) if uri else None

    def get(self, key: str) -> bytes | None:
        """Content of a small object; ``None`` if there is none.

        Raises:
            StorageError: If the store refuses, or the object is damaged.
        """
        return self._objects.get(self._prefix + key)

    def put(self, key: str, content: bytes) -> None:
        """Write a small object.

        Raises:
            StorageError: If the store refuses.
        """
        self._objects.put(self._prefix + key, content)

    def upload_directory(self, folder: Path, key: str) -> int:
        """Send all files of a folder, then its index ``KEY.json``; what is there already is not sent again.

        Returns:
            How many files were sent; 0 if the directory was whole already.

        Raises:
            StorageError: If the store refuses, or something went wrong on the way; calling again goes on.
        """
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        index = {name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for name, path in files.items()}
        if self._index(key) == index:
            return 0
        with ThreadPoolExecutor(THREADS) as pool:
            names = {name: f"{self._prefix}{key}/{name}" for name in files}
            sent = sum(pool.map(lambda name: self._objects.upload(files[name], names[name]), files))
        self.put(f"{key}.json", json.dumps(index, indent=2).encode())
        return sent

    def download_directory(self, key: str, folder: Path) -> None:
        """Fetch a directory and give it its name when all of it is there and every checksum is right.

        Broken off, a second call goes on: whole files and parts of files are kept beside ``folder``.

        Raises:
            StorageError: If there is no such whole directory, or an object in it is damaged.
        """
        index = self._index(key)
        if index is None:
            raise StorageError(
                f"{self.uri}/{key} is no whole directory: its index {key}.json is missing. Publish it again."
            )
        waiting = folder.with_name(f".{folder.name}.download")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self._fetch(key, name, index[name]["sha256"], waiting / name), index))
        with new_directory(folder) as target:
            target.rmdir()
            waiting.rename(target)

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects below a prefix, by name.

        Raises:
            StorageError: If the store refuses.
        """
        with explained("list", f"{self.uri}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self._prefix)
                    yield Stored(key, int(found["Size"]), found["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there do not matter.

        Raises:
            StorageError: If the store refuses one.
        """
        waiting = [{"Key": self._prefix + key} for key in keys]
        for start in range(0, len(waiting), _DELETED_AT_ONCE):
            with explained("delete from", self.uri):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": waiting[start : start + _DELETED_AT_ONCE], "Quiet": True}
                )
            _raise_if_kept(answer.get("Errors", []), self.uri)

    def _index(self, key: str) -> dict[str, dict[str, Any]] | None:
        content = self.get(f"{key}.json")
        if content is None:
            return None
        try:
            index: dict[str, dict[str, Any]] = json.loads(content)
        except ValueError as error:
            raise StorageError(f"{self.uri}/{key}.json is no index ({error}). Delete it and publish again.") from error
        return index

    def _fetch(self, key: str, name: str, expected: str, target: Path) -> None:
        if not (target.is_file() and sha256_file(target) == expected):
            self._objects.download(f"{self._prefix}{key}/{name}", target, expected)


def _client(uri: str, endpoint_url: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StorageError(f"The store {uri} needs boto3. Install csflow[train].") from error
    # Checksums are csflow's own: newer defaults of boto3 send some that other makers' stores refuse.
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=THREADS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with explained("open", uri):
        return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


def _raise_if_kept(errors: Sequence[dict[str, str]], uri: str) -> None:
    if errors:
        first = errors[0]
        raise StorageError(
            f"Cannot delete {len(errors)} objects of {uri}, the first one {first.get('Key')}: "
            f"{first.get('Code')} {first.get('Message', '')}. csflow needs s3:DeleteObject there."
        )
