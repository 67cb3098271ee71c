"""One object of an S3 bucket: sent in parts, checked at both ends, taken up where a transfer broke.

Every object carries the SHA-256 of its content as metadata. Sending, the store is told the SHA-256 of each part to
compare with what arrived, and the MD5 it answers with (``ETag``) is compared here, for stores that do not look at the
first; fetching, the whole is compared with the metadata before it gets its name. Parts of a broken upload stay
in the bucket and are found again (a lifecycle rule that aborts incomplete uploads after some days is good practice); a
broken download stays beside its target as ``.NAME.part``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csflow.adapters.storage.errors import explained, is_absent
from csflow.errors import StorageError, StoreUnreachableError
from csflow.files import sha256_file
from csflow.retry import retried

PART_BYTES = 16 * 2**20
"""Size of a part; S3 wants at least 5 MiB and at most 10 000 of them, so that files may have 160 GB."""

_CHUNK = 2**20
_SHA256 = "sha256"
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Head:
    """What a store tells of an object.

    Attributes:
        size: Bytes.
        sha256: Of its content, as its sender said; empty if csflow did not send it.
        etag: Changes with the content.
    """

    size: int
    sha256: str
    etag: str


@dataclass(frozen=True)
class _Mark:
    """Digests of one part, as S3 writes them: SHA-256 in base64, MD5 in hexadecimal digits."""

    sha256: str
    md5: str

    @classmethod
    def of(cls, piece: bytes) -> _Mark:
        return cls(_b64(hashlib.sha256(piece).digest()), hashlib.md5(piece, usedforsecurity=False).hexdigest())

    def is_of(self, part: dict[str, Any]) -> bool:
        """Whether a part that the store lists has this content; not every store lists SHA-256."""
        listed = part.get("ChecksumSHA256")
        return bool(listed == self.sha256 if listed else part["ETag"].strip('"') == self.md5)


class Objects:
    """The objects of one bucket.

    Args:
        client: boto3's S3 client.
        bucket: Name of the bucket.
        part_bytes: Files above this size are sent in parts of it.
    """

    def __init__(self, client: Any, bucket: str, *, part_bytes: int = PART_BYTES) -> None:
        self._client, self._bucket, self._part_bytes = client, bucket, part_bytes

    def head(self, key: str) -> Head | None:
        """What is known of an object; ``None`` if there is none.

        Raises:
            StorageError: If the store refuses to tell.
        """
        from botocore.exceptions import ClientError

        with explained("look up", self.uri(key)):
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if is_absent(error):
                    return None
                raise
        return Head(int(found["ContentLength"]), found["Metadata"].get(_SHA256, ""), found["ETag"])

    def get(self, key: str) -> bytes | None:
        """Content of a small object; ``None`` if there is none.

        Raises:
            StorageError: If the store refuses, or what arrived has another checksum than what was sent.
        """
        from botocore.exceptions import ClientError

        with explained("download", self.uri(key)):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if is_absent(error):
                    return None
                raise
            content: bytes = found["Body"].read()
        self._compare(key, hashlib.sha256(content).hexdigest(), found["Metadata"].get(_SHA256, ""))
        return content

    def put(self, key: str, content: bytes) -> None:
        """Write a small object.

        Raises:
            StorageError: If the store refuses, or got something else than was sent.
        """
        digest = hashlib.sha256(content)
        with explained("upload", self.uri(key)):
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ChecksumSHA256=_b64(digest.digest()),
                Metadata={_SHA256: digest.hexdigest()},
            )
        self._arrived(key, content, answer)

    def upload(self, path: Path, key: str) -> bool:
        """Send a file, unless the same content is there already; parts that a broken upload sent are used.

        Returns:
            Whether anything was sent.

        Raises:
            StorageError: If the store refuses, or ends up with something else than the file.
        """
        size, digest = path.stat().st_size, sha256_file(path)
        found = self.head(key)
        if found is not None and (found.size, found.sha256) == (size, digest):
            return False
        if size <= self._part_bytes:
            self.put(key, path.read_bytes())
        else:
            with explained("upload", self.uri(key)):
                self._in_parts(path, key, digest)
        arrived = self.head(key)
        if arrived is None or (arrived.size, arrived.sha256) != (size, digest):
            raise StorageError(
                f"{self.uri(key)} holds {arrived or 'nothing'} after the upload, expected {size} bytes with SHA-256 "
                f"{digest}. Somebody else may be writing there; upload again."
            )
        return True

    def download(self, key: str, target: Path, expected: str = "") -> None:
        """Fetch an object, going on where an earlier attempt broke, and give it its name when it is whole.

        Args:
            key: The object.
            target: File to write.
            expected: SHA-256 it must have; that of its metadata if empty.

        Raises:
            StorageError: If there is no such object, or what arrived has another checksum.
            StoreUnreachableError: If the store does not answer; what arrived is kept for the next attempt.
        """
        found = self.head(key)
        if found is None:
            raise StorageError(f"There is no object {self.uri(key)}. Publish or upload it first.")
        part = target.with_name(f".{target.name}.{found.etag.strip(chr(34))[:32]}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._fetch_rest(key, part, found)
        try:
            self._compare(key, sha256_file(part), expected or found.sha256)
        except StorageError:
            part.unlink()
            raise
        part.replace(target)

    def uri(self, key: str) -> str:
        """Address of an object, for people."""
        return f"s3://{self._bucket}/{key}"

    @retried(lambda error: isinstance(error, StoreUnreachableError))
    def _fetch_rest(self, key: str, part: Path, found: Head) -> None:
        """Append what is missing; repeated with pauses while the connection breaks."""
        with part.open("ab") as file:
            have = file.tell()
            if have < found.size:
                with explained("download", self.uri(key)):
                    answer = self._client.get_object(
                        Bucket=self._bucket, Key=key, Range=f"bytes={have}-", IfMatch=found.etag
                    )
                    for chunk in answer["Body"].iter_chunks(_CHUNK):
                        file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _in_parts(self, path: Path, key: str, digest: str) -> None:
        marks = [_Mark.of(piece) for piece in _pieces(path, self._part_bytes)]
        upload, there = self._broken_upload(key, marks) or (self._new_upload(key, digest), {})
        sent = []
        for number, (piece, mark) in enumerate(zip(_pieces(path, self._part_bytes), marks, strict=True), 1):
            etag = there.get(number) or self._send_part(key, upload, number, piece, mark.sha256)
            sent.append({"PartNumber": number, "ETag": etag, "ChecksumSHA256": mark.sha256})
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": sent}
        )

    def _new_upload(self, key: str, digest: str) -> str:
        answer = self._client.create_multipart_upload(
            Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256", Metadata={_SHA256: digest}
        )
        return str(answer["UploadId"])

    def _send_part(self, key: str, upload: str, number: int, content: bytes, checksum: str) -> str:
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=content, ChecksumSHA256=checksum
        )
        self._arrived(key, content, answer)
        return str(answer["ETag"])

    def _broken_upload(self, key: str, marks: Sequence[_Mark]) -> tuple[str, dict[int, str]] | None:
        """An unfinished upload of this content, with the ETags of its parts; those of other content are given up."""
        found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key).get("Uploads", [])
        for upload in [each["UploadId"] for each in found if each["Key"] == key]:
            parts = {part["PartNumber"]: part for part in self._parts(key, upload)}
            expected = dict(enumerate(marks, 1))
            if parts and all(number in expected and expected[number].is_of(part) for number, part in parts.items()):
                return upload, {number: part["ETag"] for number, part in parts.items()}
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        return None

    def _parts(self, key: str, upload: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload)
        return [part for page in pages for part in page.get("Parts", [])]

    def _arrived(self, key: str, content: bytes, answer: dict[str, Any]) -> None:
        """Compare what was sent with what the store says that it got; encrypted objects have another ETag."""
        etag = str(answer["ETag"]).strip('"')
        readable = _MD5.fullmatch(etag) and not str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
        if readable and etag != hashlib.md5(content, usedforsecurity=False).hexdigest():
            raise StorageError(
                f"{self.uri(key)} arrived damaged: the store holds other bytes than the {len(content)} that were sent. "
                "Upload again; if it happens again, look at the network and proxies in between."
            )

    def _compare(self, key: str, found: str, expected: str) -> None:
        if expected and found != expected:
            raise StorageError(
                f"{self.uri(key)} is damaged: its content has SHA-256 {found}, expected {expected}. "
                "Delete the object and publish or extract it again."
            )


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece


def _b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
