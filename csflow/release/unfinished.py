"""Find the training that a killed run left behind, so that it is finished, and mark versions that never will be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.errors import NotRegisteredError, RegistryError
from csflow.release.settled import ABANDONED, is_settled
from csflow.runs.services import Services
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version

FORCED = "forced"
"""Tag of a run that trains from another seed than the line's."""

_RECENT = 50
"""How many of a line's last runs are searched."""

KeyOf = Callable[[LineConfig], str]
"""Computes the content key of a line's present images with a configuration."""


def unfinished(
    services: Services, line: LineConfig, versions: Sequence[Version], key_of: KeyOf, *, force: bool
) -> LineConfig | None:
    """Find what a killed run was making, if the same inputs would still make it.

    That is a version that was registered but not decided, or a forced run that was killed before it registered one.

    Args:
        services: The outside systems.
        line: The line as it is configured now.
        versions: All its versions.
        key_of: Computes a content key.
        force: If True, only a forced run is finished, since another seed than the line's is asked for.

    Returns:
        The line with the seed to finish; ``None`` if no run was killed, or its data, configuration or code is not the
        present one.
    """
    try:
        runs = services.tracker.list_runs(line.line, limit=_RECENT)
    except NotRegisteredError:
        return None
    hold = services.registry.get_hold(line.line) if versions else None
    killed = {run.run_id: run for run in runs if run.status == "KILLED" and (FORCED in run.tags or not force)}
    waiting = [
        (v.tags.get("seed", ""), v.tags.get("content_key")) for v in versions if not v.decision and v.run_id in killed
    ]
    settled = {v.tags.get("content_key") for v in versions if is_settled(v, line, hold)}
    forced = [run for run in killed.values() if FORCED in run.tags and run.tags.get("content_key") not in settled]
    waiting += [(run.params.get("training.seed", ""), run.tags.get("content_key")) for run in forced]
    for seed, key in waiting:
        if seed.isdecimal() and key_of(same := line.with_seed(int(seed))) == key:
            say(f"ingest: finishing the run with seed {seed} that was killed")
            return same
    return None


def abandon(services: Services, line: str, versions: Sequence[Version], key: str) -> None:
    """Mark the versions that no run will decide any more, so that nobody waits for a decision.

    Args:
        services: The outside systems.
        line: The line.
        versions: All its versions.
        key: Content key of the run that begins, which decides the version with this key, if there is one.
    """
    for version in versions:
        if version.decision or version.tags.get("content_key") == key or _may_run(services, version):
            continue
        reason = "its run ended before the gate decided, and a later run trains from other inputs or another seed"
        tags = {"decision": ABANDONED, "decision_reason": reason}
        services.registry.set_version_tags(line, version.version, tags)
        say(f"ingest: version {version.version} was never decided and is marked as {ABANDONED}")


def _may_run(services: Services, version: Version) -> bool:
    try:
        return services.tracker.read_run(version.run_id).status == "RUNNING"
    except RegistryError:  # its run was deleted
        return False
