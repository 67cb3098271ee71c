"""The workspace's feature store with its shared tier, and the record of which features a run was made from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.features.shared_tier import FeatureTier
    from csflow.features.store import CacheManifest, FeatureStore

SPACE, DIGEST, MODEL_KEY = "features_space", "features_digest", "model_key"
"""Tags of a run and of the version it made: the feature space, the digest of the cache manifest, the key of the model
in the workspace."""

_RECORD = "features/cache.json"
"""The cache manifest among a run's artifacts."""


def feature_store(workspace: Workspace) -> FeatureStore:
    """The local store; below it what ``CSFLOW_STORE`` names, if anything."""
    from csflow.features.store import FeatureStore

    return FeatureStore(workspace.features, feature_tier())


def feature_tier() -> FeatureTier | None:
    """The tier that all runs share; ``None`` unless ``CSFLOW_STORE`` names a store.

    Raises:
        ConfigError: If it names none that can be used.
    """
    from csflow.adapters.storage import SharedFeatures, Store

    store = Store.from_environment()
    return None if store is None else SharedFeatures(store)


def record_features(workspace: Workspace, run_id: str, cached: CacheManifest) -> None:
    """Keep a run's cache manifest with the run: what its version needs is not pruned."""
    from csflow.adapters.mlflow import tracking

    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        file = Path(scratch) / Path(_RECORD).name
        cached.save(file)
        tracking.log_artifact(workspace, run_id, file, folder=str(Path(_RECORD).parent))
    tracking.set_tags(workspace, run_id, {SPACE: cached.space, DIGEST: cached.digest})


def recorded_features(workspace: Workspace, run_id: str) -> CacheManifest:
    """The cache manifest that :func:`record_features` kept.

    Raises:
        CacheError: If it is damaged.
        RegistryError: If it cannot be read.
    """
    from csflow.adapters.mlflow import tracking
    from csflow.features.store import CacheManifest

    with tempfile.TemporaryDirectory(prefix="csflow-features.") as scratch:
        return CacheManifest.load(tracking.fetch_artifact(workspace, run_id, _RECORD, Path(scratch)))
