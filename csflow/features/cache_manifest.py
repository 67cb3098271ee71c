"""List which stored features belong to a data set, and open them.

A :class:`CacheManifest` is what the step ``cache_features`` hands to later steps: an unchanging list of entries of one
feature space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from csflow.errors import CacheError, DamagedFileError
from csflow.features.entries import EXTRACT_AGAIN, FeatureSpace, Shape
from csflow.flow.pyramid import Pyramid
from csflow.system.files import sha256_json
from csflow.system.seals import read_sealed_json, write_sealed_json

_OPEN_MAPS = 16384
"""Entries kept mapped at once; Linux allows a process some 65 000 maps."""


class CachedFeatures:
    """Features of chosen images, memory-mapped, as float32.

    Attributes:
        shas: SHA-256 of each image, in the order asked for.
        shapes: ``(C, h, w)`` of every feature map, finest first.
    """

    def __init__(self, space: FeatureSpace, shas: Sequence[str]) -> None:
        """Use :meth:`CacheManifest.open`."""
        self.shas = tuple(shas)
        self.shapes = space.shapes
        self._values = space.values
        self._map = lru_cache(maxsize=_OPEN_MAPS)(space.map)
        for sha in dict.fromkeys(self.shas):
            space.verify(sha)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.shas)

    def __getitem__(self, index: int) -> Pyramid:
        """Return the pyramid of one image; level ``i`` is ``(C, h, w)`` as ``shapes[i]`` says."""
        return [level[0] for level in self.batch([index])]

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return the pyramid of several images.

        Args:
            indices: Indices into ``shas``.

        Returns:
            Feature maps; level ``i`` is ``(B, C, h, w)`` float32 as ``shapes[i]`` says.

        Raises:
            CacheError: If an entry has vanished since opening.
            IndexError: If an index is out of range.
        """
        rows = np.empty((len(indices), self._values), np.float16)
        for row, index in zip(rows, indices, strict=True):
            row[:] = self._map(self.shas[index])
        sizes = [channels * height * width for channels, height, width in self.shapes]
        levels = torch.split(torch.from_numpy(rows), sizes, dim=1)
        return [level.reshape(len(indices), *shape).float() for level, shape in zip(levels, self.shapes, strict=True)]


@dataclass(frozen=True)
class CacheManifest:
    """The entries of one feature space that belong to a data set; what steps hand to one another.

    Attributes:
        store: Root of the feature store.
        space: Name of the space in it.
        shapes: ``(C, h, w)`` of every feature map, finest first.
        entries: SHA-256 of every image, sorted.
        extracted: Number of entries that were computed for this manifest; not saved.
        fetched: Number of entries that came from the shared tier for this manifest; not saved.
    """

    store: Path
    space: str
    shapes: tuple[Shape, ...]
    entries: tuple[str, ...]
    extracted: int = field(default=0, compare=False)
    fetched: int = field(default=0, compare=False)

    @property
    def channels(self) -> int:
        """Return the number of channels of the first feature map, which all share unless several stages are read."""
        return self.shapes[0][0]

    @property
    def scales(self) -> int:
        """Return the number of feature maps per image."""
        return len(self.shapes)

    @property
    def digest(self) -> str:
        """Return the SHA-256 over space and entries; the path of the store does not count."""
        return sha256_json([self.space, list(self.entries)])

    def open(self, shas: Sequence[str]) -> CachedFeatures:
        """Open the features of some images, in this order, after comparing their checksums.

        Args:
            shas: SHA-256 of each image.

        Raises:
            CacheError: If an image is not in the manifest, or its entry is missing or damaged.
        """
        known = set(self.entries)
        for sha in shas:
            if sha not in known:
                raise CacheError(f"Image {sha} is not among the {len(known)} of this cache manifest. {EXTRACT_AGAIN}")
        return CachedFeatures(FeatureSpace(self.store / self.space, self.shapes), shas)

    def save(self, path: Path) -> None:
        """Write the manifest as sealed JSON, atomically."""
        content = {
            "store": str(self.store.absolute()),
            "space": self.space,
            "channels": self.channels,
            "shapes": self.shapes,
            "digest": self.digest,
            "entries": self.entries,
        }
        write_sealed_json(path, content)

    @classmethod
    def load(cls, path: Path, *, store: Path | None = None) -> CacheManifest:
        """Read what :meth:`save` wrote.

        Args:
            path: The JSON file.
            store: Root of the store, if it was moved.

        Raises:
            CacheError: If the file is missing, damaged or was edited.
        """
        try:
            content = read_sealed_json(path, required=False)  # runs of an older csflow recorded theirs without a seal
            shapes = tuple((int(c), int(h), int(w)) for c, h, w in content["shapes"])
            root = store or path.parent / content["store"]
            manifest = cls(root, str(content["space"]), shapes, tuple(content["entries"]))
            digest = content["digest"]
        except DamagedFileError as error:
            raise CacheError(f"{error} Extract the features again.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{path} is no cache manifest: {error!r}. Extract the features again.") from error
        if not shapes or manifest.digest != digest:
            raise CacheError(f"{path} was changed: its digest does not match. Extract the features again.")
        return manifest
