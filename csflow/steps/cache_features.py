"""Extract the features the store does not hold yet."""

from __future__ import annotations

from pathlib import Path

from csflow.progress import say
from csflow.steps.context import RunContext, load_manifest, step
from csflow.workspace import Workspace


def cache_features(context_path: str | Path, manifest_path: str | Path, *, features_out: str | Path) -> None:
    """Bring the store up to date and write the immutable cache manifest of this line's images.

    Args:
        context_path: What ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_out: Where to write the cache manifest.

    Raises:
        ModelError: If the backbone's weights do not load completely.
        CacheError: If the store cannot be written.
        StorageError: If the shared tier refuses to be read.
        DataError: If an image changed since ``ingest`` hashed it.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step("cache_features", context):
        from csflow.backbone import load_backbone
        from csflow.steps.features import feature_store, record_features

        manifest = load_manifest(context, Path(manifest_path))
        features = context.line.features
        workspace = Workspace.from_environment()
        store = feature_store(workspace)
        backbone = load_backbone(features)
        cached = store.extract(manifest, features, backbone)
        cached.save(Path(features_out))
        record_features(workspace, context.run_id, cached)
        say(f"cache_features: {len(manifest)} images x {features.scales} scales in the store")
