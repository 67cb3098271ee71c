"""Store single objects and directories below a prefix of an S3 bucket, checked at both ends.

Every object carries the SHA-256 of its bytes as metadata (``sha256``). After an upload the store is asked for the
digest of what it has; after a download the bytes are hashed. The index of a directory ``KEY/`` is ``KEY.index.json``,
written when all files of the directory are stored: without it the directory is incomplete. It is outside the directory
because whoever serves a detector from its prefix must get the detector's files and no others.
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
    """An object as the store lists it.

    Attributes:
        key: Without the store's prefix.
        size: In bytes.
        modified: Time of the upload.
    """

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Store:
    """The objects below a prefix of a bucket.

    Attributes:
        bucket: Name of the bucket.
        prefix: Without slashes at its ends; empty for the whole bucket.
        endpoint_url: URL of an S3-compatible store; by default the one in AWS_ENDPOINT_URL, else AWS.
        part_bytes: Larger objects are sent in parts of this size.
        workers: Number of transfers at once.
        attempts: Number of attempts before a transfer that keeps breaking is given up.
        pause: Seconds before a broken transfer is resumed; doubled each time.
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
        """Return the store that ``CSFLOW_STORE`` names; ``None`` if the variable is not set.

        Raises:
            ConfigError: If it is not of the form ``s3://BUCKET/PREFIX``.
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
        """Return the URL of the store, or ``AWS``."""
        return store_address(self.endpoint_url)

    def uri(self, key: str) -> str:
        """Return the address of an object, ``s3://BUCKET/PREFIX/KEY``."""
        return f"s3://{self.bucket}/{self._full(key)}"

    @cached_property
    def client(self) -> Any:
        """Return the boto3 client, which several threads may use."""
        with self._explaining(""):
            return make_client(self.endpoint_url, attempts=self.attempts, connections=2 * self.workers)

    # -- single objects ------------------------------------------------------------------------------------------

    def write(self, key: str, content: bytes) -> None:
        """Upload bytes, in parts if there are many, and ask the store to confirm their digest.

        Parts that an interrupted upload of the same content left behind are not sent again. An object with other
        content is replaced.

        Raises:
            StorageError: If the store refuses.
            StoreUnreachableError: If it does not answer.
            DamagedObjectError: If it stored something else.
        """
        self._send(key, Content.of(content, self.part_bytes))

    def read(self, key: str) -> bytes | None:
        """Download an object and check it; a transfer that breaks is resumed where it stopped.

        Returns:
            The bytes of the object; ``None`` if there is none.

        Raises:
            StorageError: As :meth:`write`.
            DamagedObjectError: If they are not the bytes that were uploaded.
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
        """Yield all objects whose keys begin with ``prefix``."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(prefix))
        skipped = len(self._full(""))
        with self._explaining(prefix):
            for page in pages:
                for found in page.get("Contents", []):
                    yield Stored(found["Key"][skipped:], found["Size"], found["LastModified"])

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; missing ones are ignored.

        Raises:
            StorageError: If the store refuses.
        """
        todo = [{"Key": self._full(key)} for key in keys]
        for start in range(0, len(todo), _DELETED_AT_ONCE):
            batch = {"Objects": todo[start : start + _DELETED_AT_ONCE], "Quiet": True}
            with self._explaining(next(iter(keys))):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete=batch)
            for failed in answer.get("Errors", []):
                uri = f"s3://{self.bucket}/{failed.get('Key')}"
                raise StorageError(f"{self.address} does not delete {uri}: {failed.get('Code')}. Ask its owner.")

    def abort_unfinished(self, prefix: str, before: datetime) -> int:
        """Drop the parts of uploads that began before a time and were never finished.

        Args:
            prefix: Prefix of the keys; empty for the whole store.
            before: Uploads that began later stay, because they may be in progress.

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
        """Upload all files of a folder, then the index that marks the directory as complete.

        Files that are already stored are not sent again; nothing is ever replaced.

        Raises:
            StorageError: If other content is stored there, or as :meth:`write`.
        """
        key = key.strip("/")
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        contents = {name: Content.of(path, self.part_bytes) for name, path in files.items()}
        present = {stored.key.removeprefix(f"{key}/") for stored in self.list(f"{key}/")}
        index = self.index_of(key)
        expected = {name: content.sums.sha256 for name, content in contents.items()}
        if extra := sorted(present - set(files)) or (sorted(index) if index not in (None, expected) else []):
            raise StorageError(
                f"{self.uri(key)}/ has other content than {folder}: {', '.join(extra[:5])}. "
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
        """Delete a directory, its index first, so that an interrupted deletion leaves no complete-looking directory."""
        key = key.strip("/")
        self.delete([f"{key}{INDEX}"])
        self.delete([stored.key for stored in self.list(f"{key}/")])

    def index_of(self, key: str) -> dict[str, str] | None:
        """Read the index of a directory.

        Returns:
            SHA-256 of every file by its name; ``None`` if there is no complete directory.

        Raises:
            DamagedObjectError: If the index cannot be read.
            StorageError: As :meth:`write`.
        """
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
        """Ask the store for the digest of an object and refuse another content than expected."""
        head = self.head(key)
        difference = ("nothing", f"{expected.size} bytes") if head is None else expected.difference(head)
        if difference is not None:
            found, wanted = difference
            raise DamagedObjectError(f"{self.uri(key)} has {found}, expected {wanted}. Delete it and upload it again.")

    def head(self, key: str) -> Mapping[str, Any] | None:
        """Return the store's description of an object; ``None`` if there is none."""
        from botocore.exceptions import ClientError

        where = {"Bucket": self.bucket, "Key": self._full(key)}
        with self._explaining(key):
            try:
                head: Mapping[str, Any] = self.client.head_object(**where, ChecksumMode="ENABLED")
                return head
            except ClientError as error:
                if not is_missing(error):
                    # The response to HEAD has no body that could say why, but the one to GET has.
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
