"""The feature store: every image's features are computed once and found again by content.

A *space* is a folder named by everything that decides the values (backbone, preprocessing). In it lies
one file an image, named by the SHA-256 of the image file: a checksum, then the pyramid as float16.
Entries are written under a temporary name and renamed, so several processes may fill one store at once.
What passes on from here is a :class:`CacheManifest`: an unchanging list of entries.

Below a store may lie a tier that all runs share (:class:`FeatureTier`): what is missing here is fetched from there,
and what had to be computed is put there. An entry that has not come that far yet is noted in ``.unshared``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from csflow.config import FeatureConfig
from csflow.errors import CacheError, CsflowError, DataError
from csflow.features.backbone import Backbone
from csflow.features.extraction import Half, extract_features
from csflow.features.shared_tier import FeatureTier, fetch_entries, held_entries, sharing
from csflow.flow.cross_scale import Pyramid
from csflow.system.files import sha256_json, write_atomic, write_json
from csflow.system.progress import track

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

Shape = tuple[int, int, int]

FORMAT = 1
"""Raised whenever reading, sizing or storing changes the values of features."""

_REPAIR = "Extract the features again; only missing and damaged entries are computed."
_MAGIC = b"csflow1\n"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size
_OPEN_MAPS = 16384
"""Entries kept mapped at once; Linux allows a process some 65 000 maps."""


@dataclass(frozen=True)
class _Space:
    """The files of one feature space.

    Attributes:
        folder: Where they lie.
        shapes: ``(C, h, w)`` of every scale, finest first.
    """

    folder: Path
    shapes: tuple[Shape, ...]

    @property
    def values(self) -> int:
        """Number of values of one image."""
        return sum(channels * height * width for channels, height, width in self.shapes)

    @property
    def entry_bytes(self) -> int:
        """Size of a sound entry."""
        return _HEADER + 2 * self.values

    def path(self, sha: str) -> Path:
        """File of an image; two digits of its digest keep folders small."""
        return self.folder / sha[:2] / sha

    def write(self, sha: str, values: Half) -> None:
        """Write an entry, atomically."""
        payload = values.tobytes()
        self._place(sha, _MAGIC + self._checksum(sha, payload) + payload)

    def adopt(self, sha: str, entry: bytes | None) -> bool:
        """Write an entry that was made elsewhere; whether it was a sound one."""
        if entry is None or self._damage(sha, entry):
            return False
        self._place(sha, entry)
        return True

    def verify(self, sha: str) -> None:
        """Compare an entry with its checksum.

        Raises:
            CacheError: If it is missing or damaged.
        """
        path = self.path(sha)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CacheError(f"Cannot read features {path}: {error.strerror or error}. {_REPAIR}") from error
        if damage := self._damage(sha, content):
            raise CacheError(f"Features {path} are damaged: {damage}. {_REPAIR}")

    def map(self, sha: str) -> Half:
        """Map a verified entry into memory."""
        path = self.path(sha)
        try:
            return np.memmap(path, dtype=np.float16, mode="r", offset=_HEADER, shape=(self.values,))
        except (OSError, ValueError) as error:
            raise CacheError(f"Cannot map features {path}: {error}. {_REPAIR}") from error

    def intact(self, sha: str) -> bool:
        """Whether a sound entry is there."""
        try:
            self.verify(sha)
        except CacheError:
            return False
        return True

    def mark_used(self, sha: str) -> None:
        """Let the file's time say that it is still in use: what removes old entries goes by it."""
        with suppress(OSError):
            os.utime(self.path(sha))

    def _place(self, sha: str, content: bytes) -> None:
        try:
            write_atomic(self.path(sha), content)
        except CsflowError as error:
            raise CacheError(str(error)) from error

    def _damage(self, sha: str, content: bytes) -> str:
        """What is wrong with an entry; nothing if it is sound."""
        if len(content) != self.entry_bytes:
            return f"{len(content)} bytes, expected {self.entry_bytes}"
        sound = content[:_HEADER] == _MAGIC + self._checksum(sha, content[_HEADER:])
        return "" if sound else "wrong checksum"

    def _checksum(self, sha: str, payload: bytes) -> bytes:
        """Over the entry's place too, so that a file copied to a wrong name is found out."""
        digest = hashlib.sha256(f"{self.folder.name}/{sha}".encode())
        digest.update(payload)
        return digest.digest()


class CachedFeatures:
    """Features of chosen images, memory-mapped, as float32.

    Attributes:
        shas: SHA-256 of each image, in the order asked for.
        shapes: ``(C, h, w)`` of every scale, finest first.
    """

    def __init__(self, space: _Space, shas: Sequence[str]) -> None:
        """Use :meth:`CacheManifest.open`."""
        self.shas = tuple(shas)
        self.shapes = space.shapes
        self._values = space.values
        self._map = lru_cache(maxsize=_OPEN_MAPS)(space.map)
        for sha in dict.fromkeys(self.shas):
            space.verify(sha)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.shas)

    def __getitem__(self, index: int) -> Pyramid:
        """Pyramid of one image; level ``i`` is ``(C, h, w)`` as ``shapes[i]`` says."""
        return [level[0] for level in self.batch([index])]

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Pyramid of several images.

        Args:
            indices: Positions in ``shas``.

        Returns:
            Feature maps; level ``i`` is ``(B, C, h, w)`` float32 as ``shapes[i]`` says.

        Raises:
            CacheError: If an entry has vanished since opening.
            IndexError: If there is no such position.
        """
        rows = np.empty((len(indices), self._values), np.float16)
        for row, index in zip(rows, indices, strict=True):
            row[:] = self._map(self.shas[index])
        sizes = [channels * height * width for channels, height, width in self.shapes]
        levels = torch.split(torch.from_numpy(rows), sizes, dim=1)
        return [level.reshape(len(indices), *shape).float() for level, shape in zip(levels, self.shapes, strict=True)]


@dataclass(frozen=True)
class CacheManifest:
    """Which entries of which space belong to a data set; what steps hand to one another.

    Attributes:
        store: Root of the feature store.
        space: Name of the space in it.
        shapes: ``(C, h, w)`` of every scale, finest first.
        entries: SHA-256 of every image, sorted.
        extracted: How many of them had to be computed just now; not saved.
        fetched: How many came from the shared tier just now; not saved.
    """

    store: Path
    space: str
    shapes: tuple[Shape, ...]
    entries: tuple[str, ...]
    extracted: int = field(default=0, compare=False)
    fetched: int = field(default=0, compare=False)

    @property
    def channels(self) -> int:
        """Channels of the first feature map; of all, unless several stages are read."""
        return self.shapes[0][0]

    @property
    def scales(self) -> int:
        """Number of feature maps an image."""
        return len(self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 over space and entries, wherever the store lies."""
        return sha256_json([self.space, list(self.entries)])

    def open(self, shas: Sequence[str]) -> CachedFeatures:
        """Open the features of some images, in this order, after comparing their checksums.

        Raises:
            CacheError: If an image is not in the manifest, or its entry is missing or damaged.
        """
        known = set(self.entries)
        for sha in shas:
            if sha not in known:
                raise CacheError(f"Image {sha} is not among the {len(known)} of this cache manifest. {_REPAIR}")
        return CachedFeatures(_Space(self.store / self.space, self.shapes), shas)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        about = {
            "store": str(self.store.absolute()),
            "space": self.space,
            "channels": self.channels,
            "shapes": self.shapes,
            "digest": self.digest,
            "entries": self.entries,
        }
        write_json(path, about)

    @classmethod
    def load(cls, path: Path, *, store: Path | None = None) -> CacheManifest:
        """Read what :meth:`save` wrote.

        Args:
            path: The JSON file.
            store: Where the store lies now, if it was moved.

        Raises:
            CacheError: If the file is missing, damaged or was edited.
        """
        try:
            about = json.loads(path.read_text())
            shapes = tuple((int(c), int(h), int(w)) for c, h, w in about["shapes"])
            root = store or path.parent / about["store"]
            manifest = cls(root, str(about["space"]), shapes, tuple(about["entries"]))
            digest = about["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{path} is no cache manifest: {error!r}. Extract the features again.") from error
        if not shapes or manifest.digest != digest:
            raise CacheError(f"{path} was changed: its digest does not match. Extract the features again.")
        return manifest


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction has to do.

    Attributes:
        shapes: ``(C, h, w)`` of every scale, finest first.
        entries: SHA-256 of every image, sorted.
        missing: Files without a sound entry in any tier, by SHA-256: to be computed.
        entry_bytes: On disk, of one image.
        shared: Files whose entries the shared tier has, by SHA-256: to be fetched.
    """

    shapes: tuple[Shape, ...]
    entries: tuple[str, ...]
    missing: dict[str, Path]
    entry_bytes: int
    shared: dict[str, Path] = field(default_factory=dict)


class FeatureStore:
    """A folder of feature spaces, perhaps with a tier below it that all runs share."""

    def __init__(self, root: Path, tier: FeatureTier | None = None) -> None:
        """Use the folder ``root``; nothing is created before the first extraction."""
        self.root = root
        self.tier = tier

    def space_of(self, features: FeatureConfig, backbone: Backbone) -> str:
        """Name of the space: a digest of all that decides the values, and of nothing else."""
        return sha256_json(_space_key(features, backbone))[:32]

    def extract(
        self, manifest: Manifest, features: FeatureConfig, backbone: Backbone, *, batch_size: int = 8
    ) -> CacheManifest:
        """Make sure that the features of every image are in the store.

        Only images without a sound entry, here or in the shared tier, are read and computed. What was computed
        before a failure stays. A shared tier that stops answering costs time, never features: they stay here, and
        the next extraction brings them there.

        Args:
            manifest: The images, with the hash of each file.
            features: Image size, scales and way of downscaling.
            backbone: Computes the features, on the device it is on.
            batch_size: Images computed at once.

        Raises:
            ConfigError: If the image size does not fit the backbone.
            DataError: If there are no images, or one is damaged or not what the manifest says.
            CacheError: If the store cannot be written.
            ModelError: If features exceed the range of half precision.
            StorageError: If the shared tier refuses to be read; nothing was computed then.
        """
        plan = self.plan(manifest, features, backbone)
        space = _Space(self.root / self.space_of(features, backbone), plan.shapes)
        self._describe(space.folder, features, backbone)
        for sha in set(plan.entries) - plan.missing.keys() - plan.shared.keys():
            space.mark_used(sha)
        todo = plan.missing | {sha: plan.shared[sha] for sha in fetch_entries(self.tier, space, list(plan.shared))}
        computed = extract_features(todo, features, backbone, batch_size, space.folder)
        with sharing(self.tier, space) as share:
            for sha, values in track(computed, total=len(todo), label="extract features"):
                space.write(sha, values)
                share(sha)
        fetched = len(plan.missing) + len(plan.shared) - len(todo)
        return CacheManifest(
            self.root, space.folder.name, plan.shapes, plan.entries, extracted=len(todo), fetched=fetched
        )

    def plan(self, manifest: Manifest, features: FeatureConfig, backbone: Backbone) -> ExtractionPlan:
        """Look what the store and its shared tier hold and lack of the features of every image; nothing is written.

        Args:
            manifest: The images, with the hash of each file.
            features: Image size, scales and way of downscaling.
            backbone: Would compute the features.

        Raises:
            ConfigError: If the image size does not fit the backbone.
            DataError: If there are no images.
            StorageError: If the shared tier refuses to be read. (One that does not answer counts as empty.)
        """
        shapes = backbone.shapes(features)
        space = _Space(self.root / self.space_of(features, backbone), shapes)
        rows = manifest.frame[["path", "sha256"]].itertuples(index=False)
        files = {str(row.sha256): manifest.root / str(row.path) for row in rows}
        if not files:
            raise DataError(f"The manifest of {manifest.root} has no images. Import or add some first.")
        absent = {sha: path for sha, path in files.items() if not space.intact(sha)}
        shared = held_entries(self.tier, space, absent)
        missing = {sha: path for sha, path in absent.items() if sha not in shared}
        fetched = {sha: path for sha, path in absent.items() if sha in shared}
        return ExtractionPlan(shapes, tuple(sorted(files)), missing, space.entry_bytes, fetched)

    def _describe(self, folder: Path, features: FeatureConfig, backbone: Backbone) -> None:
        """Say in the folder, for people, what its name stands for."""
        about = {"backbone": backbone.name, "stages": backbone.stages, **_space_key(features, backbone)}
        try:
            if not (folder / "space.json").is_file():
                write_json(folder / "space.json", about)
        except (CsflowError, OSError) as error:
            raise CacheError(str(error)) from error


def _space_key(features: FeatureConfig, backbone: Backbone) -> dict[str, str | int]:
    preprocessing = features.model_dump(include={"image_size", "scales", "downscale"})
    if features.rotations > 1:
        preprocessing["rotations"] = features.rotations
    return {"format": FORMAT, "dtype": "float16", "fingerprint": backbone.fingerprint, **preprocessing}
