"""Extract the features that the store does not have yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import CacheError, UsageError
from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.services import Services
from csflow.runs.stored_features import feature_store, record_features
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.data.manifest import Manifest
    from csflow.features.cache_manifest import CacheManifest

MOST_SHARDS = 1000


def cache_features(
    services: Services,
    context_path: str | Path,
    manifest_path: str | Path,
    *,
    features_out: str | Path,
    shards: Sequence[str] = (),
) -> None:
    """Extract missing features and write the immutable cache manifest of the line's images.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_out: Where to write the cache manifest.
        shards: The result of :func:`extract_shard` for each shard; without any, the features are extracted here.

    Raises:
        ModelError: If the backbone's weights do not load completely.
        CacheError: If the store cannot be written, or the shards do not fit together.
        DataError: If an image changed since ``ingest`` hashed it.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step(services, "cache_features", context):
        manifest = load_manifest(context, Path(manifest_path))
        cached = _joined(services, manifest, shards) if shards else _extract(services, context.line, manifest)
        cached.save(Path(features_out))
        record_features(services, context.run_id, cached)
        came = f"{cached.extracted} computed" + (f", {cached.fetched} fetched" if cached.fetched else "")
        say(f"cache_features: {len(manifest)} images x {context.line.features.scales} scales in the store, {came}")


def plan_shards(shards: int) -> list[int]:
    """List the indices of the shards, from 0.

    Raises:
        UsageError: If the number of shards is not between 1 and :data:`MOST_SHARDS`.
    """
    if not 1 <= shards <= MOST_SHARDS:
        raise UsageError(f"shards is {shards}, expected a number between 1 and {MOST_SHARDS}.")
    return list(range(shards))


def extract_shard(
    services: Services, context_path: str | Path, manifest_path: str | Path, *, shard: int, shards: int
) -> str:
    """Extract the features of one shard; several calls may run at once on the same store.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        shard: Index of the shard, from 0.
        shards: Number of shards.

    Returns:
        The input of :func:`cache_features` as JSON: space, shapes and how many images were computed; empty if there was
        nothing to do.

    Raises:
        ModelError: If the backbone's weights do not load completely.
        CacheError: If the store cannot be written.
        DataError: If an image changed since ``ingest`` hashed it.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return ""
    with step(services, "extract" if shards == 1 else f"extract_{shard}", context):
        part = shard_of(load_manifest(context, Path(manifest_path)), shard, shards)
        if not len(part):
            return ""
        cached = _extract(services, context.line, part)
        counts = {"extracted": cached.extracted, "fetched": cached.fetched}
        return json.dumps({"space": cached.space, "shapes": cached.shapes, **counts})


def shard_of(manifest: Manifest, shard: int, shards: int) -> Manifest:
    """Select the images of one shard by their content: an image is in the same shard on every machine.

    Args:
        manifest: All images.
        shard: Index of the shard, from 0.
        shards: Number of shards.
    """
    from csflow.data.manifest import Manifest

    chosen = [int(sha[:8], 16) % shards == shard for sha in manifest.frame["sha256"]]
    return Manifest(manifest.frame[chosen].reset_index(drop=True), manifest.root)


def _extract(services: Services, line: LineConfig, manifest: Manifest) -> CacheManifest:
    from csflow.features.backbone import load_backbone

    store = feature_store(services)
    return store.extract(manifest, line.features, load_backbone(line.features))


def _joined(services: Services, manifest: Manifest, shards: Sequence[str]) -> CacheManifest:
    """Join the cache manifests of all shards; every checksum is compared when features are read."""
    from csflow.features.cache_manifest import CacheManifest

    parts = [json.loads(shard) for shard in shards if shard]
    found = {part["space"] for part in parts}
    if len(found) != 1:
        spaces = ", ".join(sorted(found)) or "none"
        raise CacheError(
            f"The {len(shards)} shards wrote to these feature spaces: {spaces}; expected the same one. "
            "Their code or weights differ. Use one container image for all steps and run again."
        )
    shapes = tuple((int(c), int(h), int(w)) for c, h, w in parts[0]["shapes"])
    entries = tuple(sorted(set(manifest.frame["sha256"])))
    extracted, fetched = (sum(part[count] for part in parts) for count in ("extracted", "fetched"))
    root = services.workspace.features
    return CacheManifest(root, found.pop(), shapes, entries, extracted=extracted, fetched=fetched)
