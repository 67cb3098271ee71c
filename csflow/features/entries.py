"""Keep the features of one image as one checked file: an entry of a feature space.

A *space* is a folder whose name is a digest of everything that determines the values (backbone, preprocessing). It
holds one file an image, named by the SHA-256 of the image file: a mark, a checksum, then the pyramid as float16.
Entries are written under a temporary name and renamed, so several processes may fill one space at once.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from csflow.errors import CacheError, CsflowError
from csflow.system.files import write_atomic
from csflow.system.seals import put_aside

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of a feature map."""

Half: TypeAlias = NDArray[np.float16]
"""The values of one image as they are stored, ``(values,)``."""

EXTRACT_AGAIN = "Extract the features again; only missing and damaged entries are computed."

_MARK = b"csflow1\n"
_HEADER_BYTES = len(_MARK) + hashlib.sha256().digest_size


@dataclass(frozen=True)
class FeatureSpace:
    """The entries of one feature space.

    Attributes:
        folder: Folder of the space; its name is the name of the space.
        shapes: ``(C, h, w)`` of every feature map of an image, finest first.
    """

    folder: Path
    shapes: tuple[Shape, ...]

    @property
    def values(self) -> int:
        """Return the number of values of one image."""
        return sum(channels * height * width for channels, height, width in self.shapes)

    @property
    def entry_bytes(self) -> int:
        """Return the size of a sound entry in bytes."""
        return _HEADER_BYTES + 2 * self.values

    def path(self, sha: str) -> Path:
        """Return the file of an image; a folder for every first two digits keeps folders small."""
        return self.folder / sha[:2] / sha

    def write(self, sha: str, values: Half) -> None:
        """Write an entry, atomically.

        Raises:
            CacheError: If the disk is full or the folder cannot be written.
        """
        payload = values.tobytes()
        self._put(sha, _MARK + self._checksum(sha, payload) + payload)

    def adopt(self, sha: str, entry: bytes | None) -> bool:
        """Write an entry that was made elsewhere, if it is sound.

        Args:
            sha: SHA-256 of the image.
            entry: The entry's bytes; ``None`` if there is none.

        Returns:
            True if it was sound and is now in the space.

        Raises:
            CacheError: If the disk is full or the folder cannot be written.
        """
        if entry is None or self._damage(sha, entry):
            return False
        self._put(sha, entry)
        return True

    def verify(self, sha: str) -> None:
        """Compare an entry with its checksum.

        Raises:
            CacheError: If it is missing or damaged.
        """
        if damage := self._damage_of(sha):
            raise CacheError(f"{damage} {EXTRACT_AGAIN}")

    def map(self, sha: str) -> Half:
        """Map a verified entry into memory.

        Raises:
            CacheError: If it is missing or too short.
        """
        path = self.path(sha)
        try:
            return np.memmap(path, dtype=np.float16, mode="r", offset=_HEADER_BYTES, shape=(self.values,))
        except (OSError, ValueError) as error:
            raise CacheError(f"Cannot map features {path}: {error}. {EXTRACT_AGAIN}") from error

    def intact(self, sha: str) -> bool:
        """Return True if the space has a sound entry of an image."""
        return not self._damage_of(sha)

    def mark_used(self, sha: str) -> None:
        """Set the file's time to now: pruning removes entries that have not been used for long."""
        with suppress(OSError):
            os.utime(self.path(sha))

    def _put(self, sha: str, content: bytes) -> None:
        path = self.path(sha)
        try:
            if path.exists() and (damage := self._damage_of(sha)):  # a sound one: another process was faster
                put_aside(path, damage)
            write_atomic(path, content)
        except CsflowError as error:
            raise CacheError(str(error)) from error

    def _damage_of(self, sha: str) -> str:
        """Say in a sentence why the file of an image cannot be used; an empty text if it can."""
        path = self.path(sha)
        try:
            damage = self._damage(sha, path.read_bytes())
        except OSError as error:
            return f"Cannot read features {path}: {error.strerror or error}."
        return f"Features {path} are damaged: {damage}." if damage else ""

    def _damage(self, sha: str, content: bytes) -> str:
        """Say what is wrong with an entry; an empty text if it is sound."""
        if len(content) != self.entry_bytes:
            return f"{len(content)} bytes, expected {self.entry_bytes}"
        sound = content[:_HEADER_BYTES] == _MARK + self._checksum(sha, content[_HEADER_BYTES:])
        return "" if sound else "wrong checksum"

    def _checksum(self, sha: str, payload: bytes) -> bytes:
        """Digest names and values, so that a file copied to another name or space is noticed."""
        digest = hashlib.sha256(f"{self.folder.name}/{sha}".encode())
        digest.update(payload)
        return digest.digest()
