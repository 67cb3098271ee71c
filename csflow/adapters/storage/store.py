"""An S3 bucket's prefix as a store of single objects and directories.

Every object carries the SHA-256 of its bytes as metadata (``sha256``). After an upload the store is asked what it
holds now; after a download the bytes are hashed. Beside a directory ``KEY/`` lies ``KEY.index.json``, written when all
of its files are there: a directory without is half of one. (Beside, not in it: what serves a detector from its prefix
gets the detector's files and no others.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from csflow.adapters.storage.content import PART_BYTES, Content, Sums
from csflow.adapters.storage.multipart import send_in_parts
from csflow.adapters.storage.parallel import in_parallel
from csflow.errors import ConfigError, DamagedObjectError, StorageError
from csflow.system.object_store import Target, explaining, is_missing, make_client, passes_by_itself, store_address
from csflow.system.retry import retried

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_CHUNK = 1 << 20
_DELETED_AT_ONCE = 1000
INDEX = ".index.json"
VARIABLE = "CSFLOW_STORE"
_RIGHTS = (
    "s3:GetObject, s3:PutObject and s3:ListBucket "
    "(csflow prune also s3:DeleteObject, s3:ListBucketMultipartUploads and s3:AbortMultipartUpload)"
)


@dataclass(frozen=True)
class Stored:
    """An object as the store lists it: key without the store's prefix, size in bytes, time of its upload."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Store:
    """What lies below a prefix of a bucket.

    Attributes:
        bucket: Name of the bucket.
        prefix: Without slashes at its ends; empty for the whole bucket.
        endpoint_url: Address of an S3-compatible store; by default what AWS_ENDPOINT_URL names, else AWS.
        part_bytes: Larger objects are sent in parts of this size.
        workers: Transfers at once.
        attempts: Calls in all before a transfer that keeps breaking is given up.
        pause: Seconds before a broken transfer is taken up again; doubled each time.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    part_bytes: int = PART_BYTES
    workers: int = 8
    attempts: int = 5
    pause: float = 0.5

    @classmethod
    def from_environment(cls) -> Store | None:
        """The store that ``CSFLOW_STORE`` names; ``None`` if it names none.

        Raises:
            ConfigError: If it is no ``s3://BUCKET/PREFIX``.
        """
        uri = os.environ.get("CSFLOW_STORE", "").strip()
        if not uri:
            return None
        match = _ADDRESS.fullmatch(uri)
        if match is None:
            raise ConfigError(f"CSFLOW_STORE is {uri!r}, expected s3://BUCKET/PREFIX. Correct or unset it.")
        return cls(match[1], (match[2] or "").strip("/"))

    @property
    def address(self) -> str:
        """Where the store is looked for."""
        return store_address(self.endpoint_url)

    def uri(self, key: str) -> str:
        """``s3://BUCKET/PREFIX/KEY``."""
        return f"s3://{self.bucket}/{self._full(key)}"

    @cached_property
    def client(self) -> Any:
        """The boto3 client; it may be used by several threads."""
        with self._explaining(""):
            return make_client(self.endpoint_url, attempts=self.attempts, connections=2 * self.workers)

    # -- single objects ------------------------------------------------------------------------------------------

    def write(self, key: str, content: bytes) -> None:
        """Upload bytes; see :meth:`upload_file`."""
        self._send(key, Content.of(content, self.part_bytes))

    def upload_file(self, path: Path, key: str) -> None:
        """Upload a file, in parts if it is large, and ask the store whether it holds the same now.

        Parts that an interrupted upload of the same content left behind are not sent again. An object of
        another content is replaced.

        Raises:
            StorageError: If the store refuses.
            StoreUnreachableError: If it does not answer.
            DamagedObjectError: If it holds something else afterwards.
        """
        self._send(key, Content.of(path, self.part_bytes))

    def read(self, key: str) -> bytes | None:
        """Download an object and check it; a transfer that breaks is resumed where it stopped.

        Returns:
            The bytes of the object; ``None`` if there is none.

        Raises:
            StorageError: As :meth:`upload_file`.
            DamagedObjectError: If they are not what was uploaded.
        """
        transfer = _Transfer(self.client, {"Bucket": self.bucket, "Key": self._full(key)})
        with self._explaining(key):
            try:
                retried(passes_by_itself, attempts=self.attempts, pause=self.pause)(transfer.go_on)()
            except Exception as error:
                if is_missing(error):
                    return None
                raise
        content, expected = bytes(transfer.received), transfer.noted
        found = hashlib.sha256(content).hexdigest()
        if expected is None:
            raise DamagedObjectError(f"{self.uri(key)} carries no SHA-256: csflow did not upload it. Upload it again.")
        if found != expected:
            raise DamagedObjectError(
                f"{self.uri(key)} is damaged: found SHA-256 {found} ({len(content)} bytes), expected {expected}. "
                "Delete it and upload it again."
            )
        return content

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects whose keys begin with ``prefix``."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(prefix))
        skipped = len(self._full(""))
        with self._explaining(prefix):
            for page in pages:
                for found in page.get("Contents", []):
                    yield Stored(found["Key"][skipped:], found["Size"], found["LastModified"])

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; those that are not there are passed over."""
        todo = [{"Key": self._full(key)} for key in keys]
        for start in range(0, len(todo), _DELETED_AT_ONCE):
            batch = {"Objects": todo[start : start + _DELETED_AT_ONCE], "Quiet": True}
            with self._explaining(next(iter(keys))):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete=batch)
            for failed in answer.get("Errors", []):
                place = f"s3://{self.bucket}/{failed.get('Key')}"
                raise StorageError(f"{self.address} does not delete {place}: {failed.get('Code')}. Ask its owner.")

    def abort_unfinished(self, prefix: str, before: datetime) -> int:
        """Drop the parts of uploads that began before a time and were never finished.

        Args:
            prefix: Of the keys that are meant; empty for the whole store.
            before: Younger uploads may be in progress and stay.

        Returns:
            Number of uploads that were dropped.

        Raises:
            StorageError: If the store refuses.
        """
        found = self.client.get_paginator("list_multipart_uploads")
        dropped = 0
        with self._explaining(prefix):
            for page in found.paginate(Bucket=self.bucket, Prefix=self._full(prefix)):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < before:
                        where = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                        self.client.abort_multipart_upload(Bucket=self.bucket, **where)
                        dropped += 1
        return dropped

    # -- directories ---------------------------------------------------------------------------------------------

    def upload_directory(self, folder: Path, key: str) -> None:
        """Upload all files of a folder, then the index that makes the directory whole.

        Files that are there are not sent again; nothing is ever replaced.

        Raises:
            StorageError: If other content lies there, or as :meth:`upload_file`.
        """
        key = key.strip("/")
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        contents = {name: Content.of(path, self.part_bytes) for name, path in files.items()}
        present = {stored.key.removeprefix(f"{key}/") for stored in self.list(f"{key}/")}
        index = self.index_of(key)
        expected = {name: content.sums.sha256 for name, content in contents.items()}
        if extra := sorted(present - set(files)) or (sorted(index) if index not in (None, expected) else []):
            raise StorageError(
                f"{self.uri(key)}/ holds other content than {folder}: {', '.join(extra[:5])}. "
                "Nothing was replaced. Find out who uploaded it, remove it, and upload again."
            )

        def bring(name: str) -> None:
            content = contents[name]
            if name not in present:
                self._send(f"{key}/{name}", content)
            else:
                self._require(f"{key}/{name}", content.sums)

        in_parallel(bring, list(contents), self.workers)
        if index is None:
            self.write(f"{key}{INDEX}", json.dumps({"format": 1, "files": expected}, indent=2).encode())

    def delete_directory(self, key: str) -> None:
        """Delete a directory, its index first: what is left of an interrupted deletion is not taken for whole."""
        key = key.strip("/")
        self.delete([f"{key}{INDEX}"])
        self.delete([stored.key for stored in self.list(f"{key}/")])

    def index_of(self, key: str) -> dict[str, str] | None:
        """SHA-256 of every file of a whole directory by its name; ``None`` if there is no whole one."""
        text = self.read(f"{key.strip('/')}{INDEX}")
        if text is None:
            return None
        try:
            files = json.loads(text)["files"]
            return {str(name): str(sha) for name, sha in files.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DamagedObjectError(f"{self.uri(key)}{INDEX} is no index: {error!r}. Upload it again.") from error

    # -- parts of the above --------------------------------------------------------------------------------------

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _explaining(self, key: str) -> AbstractContextManager[None]:
        return explaining(Target(self.uri(key), self.address, VARIABLE, _RIGHTS))

    def _send(self, key: str, content: Content) -> None:
        sums = content.sums
        with self._explaining(key):
            if content.parts > 1:
                send_in_parts(self.client, self.bucket, self._full(key), content, workers=min(4, self.workers))
            else:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self._full(key),
                    Body=content.part(1),
                    Metadata={"sha256": sums.sha256},
                    ChecksumSHA256=sums.checksum(1),
                )
        self._require(key, sums)

    def _require(self, key: str, expected: Sums) -> None:
        """Ask the store whether it holds this content under ``key``."""
        head = self.head(key)
        difference = ("nothing", f"{expected.size} bytes") if head is None else expected.difference(head)
        if difference is not None:
            found, wanted = difference
            raise DamagedObjectError(f"{self.uri(key)} has {found}, expected {wanted}. Delete it and upload it again.")

    def head(self, key: str) -> Mapping[str, Any] | None:
        """What the store says of an object; ``None`` if there is none."""
        from botocore.exceptions import ClientError

        where = {"Bucket": self.bucket, "Key": self._full(key)}
        with self._explaining(key):
            try:
                head: Mapping[str, Any] = self.client.head_object(**where, ChecksumMode="ENABLED")
                return head
            except ClientError as error:
                if not is_missing(error):
                    # Answers to HEAD have no body that could say why: ask again in a way that has.
                    self.client.get_object(**where, Range="bytes=0-0")
                    raise
                try:
                    self.client.get_object(**where, Range="bytes=0-0")
                except ClientError as why:
                    if not is_missing(why):
                        raise
        return None


class _Transfer:
    """A download in progress, which keeps what it has received when the connection breaks."""

    def __init__(self, client: Any, where: Mapping[str, str]) -> None:
        self.client, self.where = client, where
        self.received = bytearray()
        self.noted: str | None = None
        self._etag: str | None = None

    def go_on(self) -> None:
        """Read on from where it stopped, provided that the object is still the same."""
        rest = {"Range": f"bytes={len(self.received)}-", "IfMatch": self._etag} if self.received else {}
        answer = self.client.get_object(**self.where, **rest)
        self._etag, self.noted = answer["ETag"], answer.get("Metadata", {}).get("sha256")
        for chunk in answer["Body"].iter_chunks(_CHUNK):
            self.received += chunk
