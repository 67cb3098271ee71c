"""Recognise a registry that has lost versions of a line, and let a person go on without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.database import initialise
from csflow.adapters.mlflow.traces import published_digests, published_lines, way_back
from csflow.adapters.mlflow.versions import model_name
from csflow.errors import RegistryError
from csflow.release.publication import DETECTORS
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version

_INDEX = ".index.json"


def require_history(services: Services, line: str, versions: Sequence[Version]) -> None:
    """Refuse to train a line if the registry does not know what is published or served of it.

    A run would otherwise count from version 1 again, or compare a challenger with an old champion or with none.

    Args:
        services: The outside systems.
        line: The line.
        versions: All its versions in the registry.

    Raises:
        RegistryError: If published detectors or an endpoint belong to versions that the registry does not have, or if
            the line had a champion and has none.
    """
    lost = lost_digests(services, line, versions)
    if lost:
        named = ", ".join(digest[:12] for digest in sorted(lost)[:5]) + (", …" if len(lost) > 5 else "")
        have = f"knows {len(versions)} of its versions" if versions else "has no version of it"
        belong = "detector belongs" if len(lost) == 1 else "detectors belong"
        raise RegistryError(
            f"The registry has lost versions of {line}: {len(lost)} published or served {belong} to no "
            f"version ({named}) at {services.workspace.tracking_uri}, which {have}. {way_back(services.workspace)} If "
            "their versions were deleted on purpose, or another registry uses the same store: "
            f"csflow restore --start-over {line}"
        )
    require_champion(line, versions)


def require_champion(line: str, versions: Sequence[Version]) -> None:
    """Refuse a line that had a champion and has none.

    Raises:
        RegistryError: If that is so.
    """
    former = [version for version in versions if version.was_champion]
    if former and not any(version.is_champion for version in versions):
        newest = max(former, key=lambda version: version.champion_order)
        raise RegistryError(
            f"{line} has no champion although it had one: its version or alias was deleted. A run would "
            f"promote without comparing. Make a version champion first: csflow promote {line}@{newest.version}"
        )


def lost_digests(services: Services, line: str, versions: Sequence[Version]) -> set[str]:
    """Return the digests of what is published or served of a line without a version in the registry.

    Those that a person decided to leave alone do not count.

    Raises:
        StorageError: If the store cannot be listed.
        DeployError: If a cluster cannot be asked what it serves.
    """
    unknown = _unknown(services, line, versions)
    return unknown - services.registry.left_alone(line) if unknown else unknown


def _unknown(services: Services, line: str, versions: Sequence[Version]) -> set[str]:
    found = published_digests(services.workspace, line) | services.endpoints.named_digests(line)
    if services.store is not None:
        folder = f"{DETECTORS}/{line}/"
        names = (stored.key.removeprefix(folder) for stored in services.store.list(folder))
        found |= {name.removesuffix(_INDEX) for name in names if name.endswith(_INDEX)}
    return found - {version.tags.get("detector_digest", "") for version in versions}


def start_over(services: Services, lines: Sequence[str]) -> dict[str, int]:
    """Go on with the registry as it is: leave published detectors without a version alone, and create what is missing.

    Args:
        services: The outside systems.
        lines: Lines; if empty, all that the registry knows or that are published in the workspace.

    Returns:
        The number of detectors of each line that are left alone from now on.

    Raises:
        RegistryError: If the database is damaged; it has to be moved away or restored first.
    """
    initialise(services.workspace, anew=True)
    known = services.registry.lines()
    counts = {}
    for line in lines or sorted({*known, *published_lines(services.workspace)}):
        model_name(line)  # refuses a name that no line can have
        unknown = _unknown(services, line, services.registry.versions(line) if line in known else [])
        if unknown or line in published_lines(services.workspace):
            services.registry.leave_alone(line, unknown)
        counts[line] = len(unknown)
    return counts
