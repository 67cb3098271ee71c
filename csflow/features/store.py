"""Extract every image's features once, keep them, and find them again by content.

The store is a folder of feature spaces (:mod:`csflow.features.entries`). An extraction returns a
:class:`csflow.features.cache_manifest.CacheManifest`, which later steps read features by.

A tier that all runs share may be set below the store (:class:`csflow.features.shared_tier.FeatureTier`): what is
missing here is fetched from it, and what had to be computed is uploaded to it. An entry that has not been uploaded yet
is noted in ``.unshared``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.config import FeatureConfig
from csflow.errors import CacheError, CsflowError, DataError
from csflow.features.backbone import Backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.features.entries import FeatureSpace, Shape
from csflow.features.extraction import extract_features
from csflow.features.shared_tier import FeatureTier, fetch_entries, held_entries, sharing
from csflow.system.files import require_space, sha256_json, write_json
from csflow.system.progress import track

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

FEATURES_FORMAT = 2
"""Version of the feature values; increase it whenever reading, sizing or storing changes them."""


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction has to do.

    Attributes:
        shapes: ``(C, h, w)`` of every feature map, finest first.
        entries: SHA-256 of every image, sorted.
        missing: Files without a sound entry in any tier, by SHA-256: to be computed.
        entry_bytes: Size of one image's entry in bytes.
        shared: Files whose entries the shared tier has, by SHA-256: to be fetched.
    """

    shapes: tuple[Shape, ...]
    entries: tuple[str, ...]
    missing: dict[str, Path]
    entry_bytes: int
    shared: dict[str, Path] = field(default_factory=dict)


class FeatureStore:
    """A folder of feature spaces, optionally above a tier that all runs share."""

    def __init__(self, root: Path, tier: FeatureTier | None = None) -> None:
        """Use the folder ``root``; nothing is created before the first extraction."""
        self.root = root
        self.tier = tier

    def space_of(self, features: FeatureConfig, backbone: Backbone) -> str:
        """Name the feature space by a digest of everything that determines the values, and of nothing else."""
        return sha256_json(_space_key(features, backbone))[:32]

    def extract(
        self, manifest: Manifest, features: FeatureConfig, backbone: Backbone, *, batch_size: int = 8
    ) -> CacheManifest:
        """Make sure that the features of every image are in the store.

        Only images without a sound entry, here or in the shared tier, are read and computed. What was computed
        before a failure is kept. A shared tier that stops answering costs time, never features: they stay here, and
        the next extraction uploads them.

        Args:
            manifest: The images, with the hash of each file.
            features: Image size, scales and way of downscaling.
            backbone: Computes the features on its own device.
            batch_size: Number of images computed at once.

        Returns:
            The entries of all images of the manifest.

        Raises:
            ConfigError: If the image size does not fit the backbone.
            DataError: If there are no images, or one is damaged or not what the manifest says.
            CacheError: If the store cannot be written.
            DiskFullError: If the features need more space than is free; nothing was computed then.
            ModelError: If features exceed the range of half precision.
            StorageError: If the shared tier refuses to be read; nothing was computed then.
        """
        plan = self.plan(manifest, features, backbone)
        space = FeatureSpace(self.root / self.space_of(features, backbone), plan.shapes)
        absent = len(plan.missing) + len(plan.shared)
        require_space(space.folder, absent * plan.entry_bytes, f"The features of {absent} images")
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
        """Find out which features an extraction would compute, and which it would fetch; write nothing.

        Args:
            manifest: The images, with the hash of each file.
            features: Image size, scales and way of downscaling.
            backbone: The backbone that would compute the features.

        Raises:
            ConfigError: If the image size does not fit the backbone.
            DataError: If there are no images.
            StorageError: If the shared tier refuses to be read. (One that does not answer counts as empty.)
        """
        shapes = backbone.shapes(features)
        space = FeatureSpace(self.root / self.space_of(features, backbone), shapes)
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
        """Write into the folder, for people, what its name stands for."""
        content = {"backbone": backbone.name, "stages": backbone.stages, **_space_key(features, backbone)}
        try:
            if not (folder / "space.json").is_file():
                write_json(folder / "space.json", content)
        except (CsflowError, OSError) as error:
            raise CacheError(str(error)) from error


def _space_key(features: FeatureConfig, backbone: Backbone) -> dict[str, str | int]:
    preprocessing = features.model_dump(include={"image_size", "scales", "downscale"})
    if features.rotations > 1:
        preprocessing["rotations"] = features.rotations
    if features.bit_depth is not None:
        preprocessing["bit_depth"] = features.bit_depth
    return {"format": FEATURES_FORMAT, "dtype": "float16", "fingerprint": backbone.fingerprint, **preprocessing}
