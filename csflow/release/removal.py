"""Remove what a prune plan lists, unless it has become needed since."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.release.prune import live_versions, unshared_digests
from csflow.release.prune_plan import PrunePlan, PrunePolicy, Removal, size_of
from csflow.release.publication import DETECTORS
from csflow.runs.services import Services
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.adapters.storage import Store


def remove(services: Services, made: PrunePlan) -> int:
    """Remove what a plan lists, unless it has become needed since.

    A line's versions are removed while its endpoint is locked, and only after their published detectors, so that the
    next call finds whatever an interrupted one leaves behind. Parts of uploads that began before the policy's time and
    were never finished are deleted from the store as well.

    Returns:
        The number of bytes removed.

    Raises:
        RegistryError: If the registry refuses.
        StorageError: If the store refuses.
        DeployError: If a cluster cannot be asked what it serves.
    """
    store, removed = services.store, 0
    for each in made.removals:
        if each.versions and not _remove_versions(services, store, made.policy, each):
            say(f"prune: {each.what}: some are in use again; the rest of the plan was skipped. Run the command again.")
            return removed
        if each.keys and store is not None:
            store.delete(each.keys)
        removed += sum(_remove_path(path, made.policy) for path in each.paths) if each.paths else each.bytes
    if store is not None and (dropped := store.abort_unfinished("", made.policy.before)):
        say(f"prune: dropped the parts of {dropped} uploads that were never finished")
    return removed


def _remove_versions(services: Services, store: Store | None, policy: PrunePolicy, removal: Removal) -> bool:
    """Remove a line's versions, each after its published detector; False if some have become needed since."""
    line = removal.versions[0].line
    with services.endpoints.lock(line):
        versions = services.registry.versions(line)
        live = live_versions(services, line, versions, policy)
        chosen = {version.version for version in removal.versions} - live.keys()
        going = [version for version in versions if version.version in chosen]
        staying = [version for version in versions if version.version not in chosen]
        for version in going:
            for digest in unshared_digests([version], staying):
                _remove_published(services, store, line, digest)
            services.registry.delete_version(version)
            say(f"prune: version {version.version} of {line} is gone")
        return len(chosen) == len(removal.versions)


def _remove_published(services: Services, store: Store | None, line: str, digest: str) -> None:
    """Delete a published detector on this machine and in the store."""
    if store is not None:
        store.delete_directory(f"{DETECTORS}/{line}/{digest}")
    shutil.rmtree(services.workspace.detectors / line / digest, ignore_errors=True)


def _remove_path(path: Path, policy: PrunePolicy) -> int:
    """Remove a file or folder unless it was used in the meantime, and return the bytes removed."""
    if not policy.is_old(path):
        return 0
    size = size_of(path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return size
