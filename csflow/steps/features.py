"""The feature store that steps use: a folder of the workspace, above the shared store if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csflow.workspace import Workspace

if TYPE_CHECKING:
    from csflow.cache import FeatureStore


def feature_store(workspace: Workspace) -> FeatureStore:
    """The store of a workspace; its tier is the one of ``CSFLOW_STORE``.

    Raises:
        UsageError: If ``CSFLOW_STORE`` names no bucket.
        StorageError: If the store cannot be used at all.
    """
    from csflow.adapters.storage import SharedFeatures, Store
    from csflow.cache import FeatureStore

    store = Store.from_environment()
    return FeatureStore(workspace.features, SharedFeatures(store) if store else None)
