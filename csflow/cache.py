"""The feature store: every image's features are computed once and found again by content.

A *space* is a folder named by everything that decides the values (backbone, preprocessing). In it lies
one file an image, named by the SHA-256 of the image file: a checksum, then the pyramid as float16.
Entries are written under a temporary name and renamed, so several processes may fill one store at once.
Below the folder may lie a *tier* that machines share: what is missing here is looked for there before it is computed.
What passes on from here is a :class:`CacheManifest`: an unchanging list of entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from csflow.backbone import Backbone
from csflow.config import FeatureConfig
from csflow.errors import CacheError, CsflowError, DataError, StoreUnreachableError
from csflow.extraction import Half, extract_features
from csflow.files import sha256_json, write_atomic, write_json
from csflow.flow import Pyramid
from csflow.progress import say, track

if TYPE_CHECKING:
    from csflow.manifest import Manifest

Shape = tuple[int, int, int]

FORMAT = 1
"""Raised whenever reading, sizing or storing changes the values of features."""

_REPAIR = "Extract the features again; only missing and damaged entries are computed."
_MAGIC = b"csflow1\n"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size
_OPEN_MAPS = 16384
"""Entries kept mapped at once; Linux allows a process some 65 000 maps."""


class FeatureTier(Protocol):
    """Entries that several machines share, as the local store lays them down."""

    def fetch(self, space: str, shas: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Content of those entries that are there."""

    def share(self, space: str, entries: Iterable[tuple[str, Path]]) -> int:
        """Write entries from their files; how many."""


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
        try:
            write_atomic(self.path(sha), _MAGIC + self._checksum(sha, payload) + payload)
        except CsflowError as error:
            raise CacheError(str(error)) from error

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
        damage = self._damage(sha, content)
        if damage:
            raise CacheError(f"Features {path} are damaged: {damage}. {_REPAIR}")

    def adopt(self, sha: str, content: bytes) -> bool:
        """Write an entry that was computed elsewhere; whether it is sound."""
        if self._damage(sha, content):
            return False
        try:
            write_atomic(self.path(sha), content)
        except CsflowError as error:
            raise CacheError(str(error)) from error
        return True

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

    def _damage(self, sha: str, content: bytes) -> str:
        """What is wrong with the content of an entry; empty if nothing."""
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
        fetched: How many were found in the shared tier just now; not saved.
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
        missing: Files without a sound entry, by SHA-256.
        entry_bytes: On disk, of one image.
    """

    shapes: tuple[Shape, ...]
    entries: tuple[str, ...]
    missing: dict[str, Path]
    entry_bytes: int


class FeatureStore:
    """A folder of feature spaces.

    Args:
        root: The folder; nothing is created before the first extraction.
        tier: Where machines share entries; ``None`` for nowhere.
    """

    def __init__(self, root: Path, tier: FeatureTier | None = None) -> None:
        self.root, self.tier = root, tier

    def space_of(self, features: FeatureConfig, backbone: Backbone) -> str:
        """Name of the space: a digest of all that decides the values, and of nothing else."""
        return sha256_json(_space_key(features, backbone))[:32]

    def extract(
        self, manifest: Manifest, features: FeatureConfig, backbone: Backbone, *, batch_size: int = 8
    ) -> CacheManifest:
        """Make sure that the features of every image are in the store.

        Only images without a sound entry, here or in the tier, are read and computed. What was computed before a
        failure stays. A tier that does not answer is done without, and said so; one that refuses is an error, after
        what had to be computed is safe here.

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
            StorageError: If the tier refuses to be read or written.
        """
        plan = self.plan(manifest, features, backbone)
        space = _Space(self.root / self.space_of(features, backbone), plan.shapes)
        self._describe(space.folder, features, backbone)
        fetched = self._fetch(space, list(plan.missing))
        todo = {sha: path for sha, path in plan.missing.items() if sha not in fetched}
        computed = extract_features(todo, features, backbone, batch_size, space.folder)
        for sha, values in track(computed, total=len(todo), label="extract features"):
            space.write(sha, values)
        self._share(space, list(todo))
        return CacheManifest(
            self.root, space.folder.name, plan.shapes, plan.entries, extracted=len(todo), fetched=len(fetched)
        )

    def plan(self, manifest: Manifest, features: FeatureConfig, backbone: Backbone) -> ExtractionPlan:
        """Look what the store holds and lacks of the features of every image; nothing is written.

        Args:
            manifest: The images, with the hash of each file.
            features: Image size, scales and way of downscaling.
            backbone: Would compute the features.

        Raises:
            ConfigError: If the image size does not fit the backbone.
            DataError: If there are no images.
        """
        shapes = backbone.shapes(features)
        space = _Space(self.root / self.space_of(features, backbone), shapes)
        rows = manifest.frame[["path", "sha256"]].itertuples(index=False)
        files = {str(row.sha256): manifest.root / str(row.path) for row in rows}
        if not files:
            raise DataError(f"The manifest of {manifest.root} has no images. Import or add some first.")
        missing = {sha: path for sha, path in files.items() if not space.intact(sha)}
        return ExtractionPlan(shapes, tuple(sorted(files)), missing, space.entry_bytes)

    def _fetch(self, space: _Space, missing: Sequence[str]) -> set[str]:
        """Take what the tier holds of the missing entries; damaged ones are computed again."""
        found: set[str] = set()
        if self.tier is None or not missing:
            return found
        try:
            for sha, content in self.tier.fetch(space.folder.name, missing):
                if space.adopt(sha, content):
                    found.add(sha)
        except StoreUnreachableError as error:
            say(f"features: {len(missing) - len(found)} images are computed here instead of fetched. {error}")
        return found

    def _share(self, space: _Space, computed: Sequence[str]) -> None:
        """Let other machines have what was computed."""
        if self.tier is None or not computed:
            return
        try:
            self.tier.share(space.folder.name, ((sha, space.path(sha)) for sha in computed))
        except StoreUnreachableError as error:
            say(f"features: {len(computed)} new entries stay on this machine, others will compute them again. {error}")

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
