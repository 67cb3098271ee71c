"""The workspace's feature store with its shared tier, and the record of which features a run was made from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csflow.features.cache_manifest import CacheManifest
    from csflow.features.shared_tier import FeatureTier
    from csflow.features.store import FeatureStore
    from csflow.runs.services import Services

SPACE, DIGEST, MODEL_KEY = "features_space", "features_digest", "model_key"
"""Tags of a run and of the version it made: the feature space, the digest of the cache manifest, the key of the model
in the workspace."""

_RECORD = "features/cache.json"
"""The cache manifest among a run's artifacts."""


def feature_store(services: Services) -> FeatureStore:
    """The local store; below it what ``CSFLOW_STORE`` names, if anything."""
    from csflow.features.store import FeatureStore

    return FeatureStore(services.workspace.features, feature_tier(services))


def feature_tier(services: Services) -> FeatureTier | None:
    """The tier that all runs share; ``None`` unless ``CSFLOW_STORE`` names a store."""
    from csflow.adapters.storage import SharedFeatures

    return None if services.store is None else SharedFeatures(services.store)


def record_features(services: Services, run_id: str, cached: CacheManifest) -> None:
    """Keep a run's cache manifest with the run: what its version needs is not pruned."""
    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        file = Path(scratch) / Path(_RECORD).name
        cached.save(file)
        services.tracker.log_artifact(run_id, file, folder=str(Path(_RECORD).parent))
    services.tracker.set_tags(run_id, {SPACE: cached.space, DIGEST: cached.digest})


def recorded_features(services: Services, run_id: str) -> CacheManifest:
    """The cache manifest that :func:`record_features` kept.

    Raises:
        CacheError: If it is damaged.
        RegistryError: If it cannot be read.
    """
    from csflow.features.cache_manifest import CacheManifest

    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        return CacheManifest.load(services.tracker.fetch_artifact(run_id, _RECORD, Path(scratch)))
