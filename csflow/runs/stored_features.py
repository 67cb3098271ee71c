"""Open the workspace's feature store with its shared tier, and record which features a run used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import CacheError
from csflow.system.seals import put_aside

if TYPE_CHECKING:
    from csflow.features.cache_manifest import CacheManifest
    from csflow.features.shared_tier import FeatureTier
    from csflow.features.store import FeatureStore
    from csflow.runs.services import Services

SPACE, DIGEST, MODEL_KEY = "features_space", "features_digest", "model_key"
"""Tags of a run and of its version: the feature space, the digest of the cache manifest, and the key of the model in
the workspace."""

_RECORD = "features/cache.json"
"""Path of the cache manifest among a run's artifacts."""


def feature_store(services: Services) -> FeatureStore:
    """Open the local feature store, with the store that ``CSFLOW_STORE`` names as its shared tier, if any."""
    from csflow.features.store import FeatureStore

    return FeatureStore(services.workspace.features, feature_tier(services))


def feature_tier(services: Services) -> FeatureTier | None:
    """Return the tier that all runs share; ``None`` unless ``CSFLOW_STORE`` names a store."""
    from csflow.adapters.storage import SharedFeatures

    return None if services.store is None else SharedFeatures(services.store)


def record_features(services: Services, run_id: str, cached: CacheManifest) -> None:
    """Store a run's cache manifest with the run, so that the features its version needs are not pruned."""
    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        file = Path(scratch) / Path(_RECORD).name
        cached.save(file)
        services.tracker.log_artifact(run_id, file, folder=str(Path(_RECORD).parent))
    services.tracker.set_tags(run_id, {SPACE: cached.space, DIGEST: cached.digest})


def recorded_features(services: Services, run_id: str) -> CacheManifest:
    """Read the cache manifest that :func:`record_features` stored.

    Raises:
        CacheError: If it is damaged.
        RegistryError: If it cannot be read.
    """
    from csflow.features.cache_manifest import CacheManifest

    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        return CacheManifest.load(services.tracker.fetch_artifact(run_id, _RECORD, Path(scratch)))


def load_features(services: Services, run_id: str, path: Path) -> CacheManifest:
    """Read a run's cache manifest; replace a damaged file by the copy that :func:`record_features` stored.

    Raises:
        CacheError: If that one is damaged as well.
        RegistryError: If it cannot be read.
    """
    from csflow.features.cache_manifest import CacheManifest

    try:
        return CacheManifest.load(path)
    except CacheError as error:
        recorded = recorded_features(services, run_id)
        put_aside(path, str(error))
        recorded.save(path)
        return recorded
