"""Compute the digests of content, and compare them with what the store says about an object."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_MD5 = re.compile(r'"?[0-9a-f]{32}(-\d+)?"?')


@dataclass(frozen=True)
class Content:
    """The bytes of a file or in memory, in the parts in which they are sent.

    Attributes:
        source: The file, or the bytes themselves.
        size: Number of bytes.
        part_bytes: Size of every part but the last.
    """

    source: Path | bytes
    size: int
    part_bytes: int

    @classmethod
    def of(cls, source: Path | bytes, part_bytes: int = PART_BYTES) -> Content:
        """Make the content of a file or of bytes; parts are larger if there would be more than S3 allows."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return cls(source, size, max(part_bytes, -(-size // _MOST_PARTS)))

    @property
    def parts(self) -> int:
        """Return the number of parts, which is one even if there are no bytes."""
        return max(1, -(-self.size // self.part_bytes))

    def part(self, number: int) -> bytes:
        """Return the bytes of a part; parts are counted from 1."""
        start = (number - 1) * self.part_bytes
        if isinstance(self.source, bytes):
            return self.source[start : start + self.part_bytes]
        with self.source.open("rb") as file:
            file.seek(start)
            return file.read(self.part_bytes)

    @cached_property
    def sums(self) -> Sums:
        """Compute all digests in one pass."""
        whole, sha256, md5 = hashlib.sha256(), [], []
        for part in self._all():
            whole.update(part)
            sha256.append(hashlib.sha256(part).digest())
            md5.append(hashlib.md5(part, usedforsecurity=False).digest())
        return Sums(self.size, whole.hexdigest(), tuple(sha256), tuple(md5))

    def _all(self) -> Iterator[bytes]:
        for number in range(1, self.parts + 1):
            yield self.part(number)


@dataclass(frozen=True)
class Sums:
    """Digests of an object as a whole and of its parts.

    Attributes:
        size: Number of bytes.
        sha256: Of all bytes, hexadecimal.
        part_sha256: Of each part, raw.
        part_md5: Of each part, raw.
    """

    size: int
    sha256: str
    part_sha256: tuple[bytes, ...]
    part_md5: tuple[bytes, ...]

    def checksum(self, number: int) -> str:
        """Return the SHA-256 of a part as S3 writes it; parts are counted from 1."""
        return base64.b64encode(self.part_sha256[number - 1]).decode()

    def is_part(self, number: int, found: Mapping[str, Any]) -> bool:
        """Return True if a part that the store lists belongs to this content."""
        if not 0 < number <= len(self.part_sha256):
            return False
        if checksum := found.get("ChecksumSHA256"):
            return bool(checksum == self.checksum(number))
        return bool(str(found.get("ETag", "")).strip('"') == self.part_md5[number - 1].hex())

    def difference(self, head: Mapping[str, Any]) -> tuple[str, str] | None:
        """Compare the store's description of an object with this content.

        It compares the size, the digest noted at the upload, and the store's own digest of the object if it states
        one (ChecksumSHA256, or an ETag that is an MD5).

        Args:
            head: The store's description.

        Returns:
            What the store says and what was expected, in words; ``None`` if it is the same content.
        """
        if head["ContentLength"] != self.size:
            return f"{head['ContentLength']} bytes", f"{self.size} bytes"
        noted = head.get("Metadata", {}).get("sha256", "none")
        if noted != self.sha256:
            return f"SHA-256 {noted}", f"SHA-256 {self.sha256}"
        checksum, expected = str(head.get("ChecksumSHA256", "")).partition("-")[0], self._composite(head)
        if checksum and checksum != expected:
            return f"checksum {checksum}", f"checksum {expected}"
        return None if checksum else self._other_etag(head)

    def _composite(self, head: Mapping[str, Any]) -> str:
        if "-" in str(head.get("ETag", "")):
            return base64.b64encode(hashlib.sha256(b"".join(self.part_sha256)).digest()).decode()
        return base64.b64encode(bytes.fromhex(self.sha256)).decode()

    def _other_etag(self, head: Mapping[str, Any]) -> tuple[str, str] | None:
        """Compare the ETag, which is an MD5 unless the object is encrypted with a customer's key; that of an object
        sent in parts is comparable only if the parts are the same as ours.
        """
        etag = str(head.get("ETag", ""))
        encrypted = head.get("ServerSideEncryption") not in (None, "AES256") or "SSECustomerAlgorithm" in head
        if encrypted or not _MD5.fullmatch(etag):
            return None
        found, _, parts = etag.strip('"').partition("-")
        if parts and int(parts) != len(self.part_md5):
            return None
        if not parts and len(self.part_md5) > 1:
            return None
        composite = hashlib.md5(b"".join(self.part_md5), usedforsecurity=False).hexdigest()
        expected = composite if parts else self.part_md5[0].hex()
        return None if found == expected else (f"MD5 {found}", f"MD5 {expected}")
