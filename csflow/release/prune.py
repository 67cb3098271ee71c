"""List what no live version needs in the workspace, in the store and in the registry.

A version is live if :func:`csflow.release.retention.kept` has a reason to keep it. Its features are those its run
recorded (:mod:`csflow.runs.stored_features`). If it is not known what is needed, nothing is removed:

* a live version without such a record (registered by an older csflow): no features are removed at all;
* a live version whose record cannot be read: no features are removed, and the command fails;
* a registry without versions, or a store that has detectors of another registry: nothing is removed from either.

Nothing newer than a given time is touched, so that a run in progress loses nothing: an extraction renews the time of
every entry that it uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.storage.features import FEATURES
from csflow.errors import CacheError, CsflowError
from csflow.release import leftovers
from csflow.release.prune_plan import PrunePlan, PrunePolicy, Removal, size_of
from csflow.release.publication import DETECTORS
from csflow.release.retention import kept
from csflow.runs.services import Services
from csflow.runs.stored_features import DIGEST, SPACE, recorded_features
from csflow.system.seals import ASIDE

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version
    from csflow.adapters.storage import Store, Stored
    from csflow.system.workspace import Workspace

_SHA = re.compile(r"[0-9a-f]{64}")
_MODEL = re.compile(r"([0-9a-f]{64})(\.work)?")
_ASIDE = re.compile(re.escape(ASIDE) + r"(-\d+)?$")
_KEPT = (
    *("data/*/*", "features/*/*", "features/*/*/*", "models/*", "models/*/*", "detectors/*/*"),
    *("ablations/*/*", "ablations/*/*/*", "endpoints/*", "endpoints/*/*"),
)
"""What csflow keeps and checks in a workspace; not the files of a checkout, which may have any name."""

Needed = dict[str, set[str]]
"""Entries that live versions need, by feature space."""


def plan_pruning(services: Services, policy: PrunePolicy) -> PrunePlan:
    """List everything that no live version needs, without changing anything.

    Raises:
        RegistryError: If the registry cannot be read.
        DeployError: If a cluster cannot be asked what it serves.
        StorageError: If the store cannot be listed.
    """
    store, made = services.store, PrunePlan(policy)
    published = _published(store) if store else {}
    live: list[Version] = []
    known: dict[str, set[str]] = {}
    for line in services.registry.lines():
        versions = services.registry.versions(line)
        made.live[line] = live_versions(services, line, versions, policy)
        staying = [version for version in versions if version.version in made.live[line]]
        live += staying
        known[line] = {version.tags.get("detector_digest", "") for version in versions}
        _add_versions(made, services, line, [v for v in versions if v not in staying], staying, published)
    _add_models(made, services, {version.tags.get("model_key", "") for version in live})
    leftovers.add_runs(made, services.workspace, {version.run_id for version in live})
    leftovers.add_checkouts(made, services.workspace)
    leftovers.add_unfinished(made, services.workspace)
    _add_put_aside(made, services.workspace)
    needed = _needed(made, services, live)
    if needed is not None:
        _add_local_features(made, services, needed)
        if store is not None and not _of_another_registry(made, store, published, known):
            _add_shared_features(made, store, needed)
    return made


def live_versions(services: Services, line: str, versions: list[Version], policy: PrunePolicy) -> dict[int, list[str]]:
    """Return the reasons to keep versions of a line, by their number; the others may be removed."""
    served = services.endpoints.named_digests(line)
    hold = services.registry.get_hold(line)
    return kept(versions, newest=policy.keep, served=served, hold=hold, before=policy.before)


def _add_versions(
    made: PrunePlan,
    services: Services,
    line: str,
    going: list[Version],
    staying: list[Version],
    published: dict[tuple[str, str], list[Stored]],
) -> None:
    """Add a line's versions that may be removed, and their published detectors, which several versions may share."""
    digests = unshared_digests(going, staying)
    size = sum(services.registry.stored_bytes(version) for version in going)
    folders = [path for digest in sorted(digests) if (path := services.workspace.detectors / line / digest).is_dir()]
    objects = [stored for digest in digests for stored in published.get((line, digest), [])]
    made.add(Removal(f"versions of {line}", "registry", size, versions=tuple(going)))
    # Listed for people; they are removed together with their versions.
    size += sum(size_of(path) for path in folders) + sum(stored.size for stored in objects)
    if going:
        made.removals[-1] = Removal(
            f"versions of {line}" + (", with what was published of them" if folders or objects else ""),
            "registry" + (", workspace" if folders else "") + (", store" if objects else ""),
            size,
            versions=tuple(going),
        )


def unshared_digests(going: Iterable[Version], staying: Iterable[Version]) -> set[str]:
    """Return the digests of detectors that no remaining version has."""
    digests = {version.tags.get("detector_digest", "") for version in going}
    return digests - {version.tags.get("detector_digest", "") for version in staying} - {""}


def _published(store: Store) -> dict[tuple[str, str], list[Stored]]:
    """List the objects of every detector in the store, including its index, by line and digest."""
    found: dict[tuple[str, str], list[Stored]] = {}
    for stored in store.list(f"{DETECTORS}/"):
        _, line, name, *_ = [*stored.key.split("/"), "", ""]
        if _SHA.fullmatch(digest := name.partition(".")[0]):
            found.setdefault((line, digest), []).append(stored)
    return found


def _of_another_registry(
    made: PrunePlan, store: Store, published: dict[tuple[str, str], list[Stored]], known: dict[str, set[str]]
) -> bool:
    """Tell if the store has detectors of versions that this registry does not know."""
    foreign = sorted(f"{line}/{digest[:12]}" for line, digest in published if digest not in known.get(line, set()))
    if foreign:
        made.notes.append(
            f"{len(foreign)} published detectors in the store match no version in this registry ({foreign[0]}, …). "
            "Another registry seems to use the store, so its features stay. If their versions were deleted by hand, "
            f"delete the detectors in {DETECTORS}/ too."
        )
    return bool(foreign)


def _needed(made: PrunePlan, services: Services, live: list[Version]) -> Needed | None:
    """Return the entries of all live versions; ``None`` if they are not known."""
    if not live:
        made.notes.append("This registry has no version that could say which features are needed: all of them stay.")
        return None
    silent = [version for version in live if not version.tags.get(DIGEST)]
    if silent:
        names = ", ".join(f"{version.line}@{version.version}" for version in silent[:5])
        made.notes.append(
            f"{len(silent)} live versions do not say which features they were made from ({names}), because an older "
            "csflow registered them: all features stay until newer versions replace them."
        )
        return None
    needed: Needed = {}
    for version in {version.tags[DIGEST]: version for version in live}.values():
        try:
            record = recorded_features(services, version.run_id)
            if (record.space, record.digest) != (version.tags.get(SPACE), version.tags[DIGEST]):
                raise CacheError(f"Its digest is {record.digest}, expected {version.tags[DIGEST]}.")
        except CsflowError as error:
            made.refusal = (
                f"The features of {version.line}@{version.version} are not known, so none are removed: {error} "
                f"Restore the artifact features/cache.json of run {version.run_id}, or delete the version."
            )
            return None
        needed.setdefault(record.space, set()).update(record.entries)
    return needed


def _add_local_features(made: PrunePlan, services: Services, needed: Needed) -> None:
    for space in sorted(path for path in services.workspace.features.glob("*") if path.is_dir()):
        wanted, entries = needed.get(space.name, set()), list(_entries(space))
        going = [path for path in entries if path.name not in wanted and made.policy.is_old(path)]
        if space.name not in needed and len(going) == len(entries) and made.policy.is_old(space):
            going = [space]  # with the graph of its trunk
        size = sum(size_of(path) for path in going)
        made.add(Removal(f"features in {space.name[:12]}", "workspace", size, paths=tuple(going)))


def _add_shared_features(made: PrunePlan, store: Store, needed: Needed) -> None:
    going: dict[str, list[Stored]] = {}
    for stored in store.list(f"{FEATURES}/"):
        parts = stored.key.split("/")
        if len(parts) != 4 or not _SHA.fullmatch(parts[3]):
            continue
        space, sha = parts[1], parts[3]
        if sha not in needed.get(space, set()) and stored.modified < made.policy.before:
            going.setdefault(space, []).append(stored)
    for space, some in sorted(going.items()):
        keys, size = tuple(stored.key for stored in some), sum(stored.size for stored in some)
        made.add(Removal(f"features in {space[:12]}", "store", size, keys=keys))


def _add_models(made: PrunePlan, services: Services, needed: set[str]) -> None:
    """Add old models and checkpoints; they only save a training, since every version contains its model."""
    folders = [(path, match) for path in services.workspace.models.glob("*") if (match := _MODEL.fullmatch(path.name))]
    for what, suffix in (("fitted models", None), ("checkpoints", ".work")):
        some = [p for p, m in folders if m[2] == suffix and m[1] not in needed and made.policy.is_old(p)]
        made.add(Removal(what, "workspace", sum(size_of(path) for path in some), paths=tuple(sorted(some))))


def _add_put_aside(made: PrunePlan, workspace: Workspace) -> None:
    """Add old files and folders that were damaged; what they held was made again."""
    found = [path for pattern in _KEPT for path in workspace.root.glob(pattern) if _ASIDE.search(path.name)]
    some = tuple(sorted(path for path in found if made.policy.is_old(path)))
    made.add(Removal("damaged files put aside", "workspace", sum(size_of(path) for path in some), paths=some))


def _entries(space: Path) -> Iterator[Path]:
    for path in space.glob("[0-9a-f][0-9a-f]/*"):
        if _SHA.fullmatch(path.name):
            yield path
