"""Decide which versions of a line stay, and why, without reading or writing anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from csflow.release.settled import former_champions

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version


def kept(
    versions: Sequence[Version],
    *,
    newest: int,
    served: Collection[str],
    hold: Mapping[str, str] | None,
    before: datetime,
) -> dict[int, list[str]]:
    """Return the reasons to keep versions, by number; a version without any may be removed.

    Args:
        versions: All versions of one line.
        newest: How many of the newest versions stay in any case, at least 1.
        served: Digests of detectors that an endpoint names.
        hold: The details of the hold, if a person rolled back.
        before: A version registered at this time or later stays, since its run may not have finished.
    """
    reasons: dict[int, list[str]] = {version.version: [] for version in versions}
    ordered = sorted(versions, key=lambda version: version.version, reverse=True)
    for version in ordered:
        why = reasons[version.version]
        why += version.keeping_aliases
        if version.tags.get("detector_digest") in served:
            why.append("endpoint")
        if version.created >= before:
            why.append("recent")
        if hold and str(version.version) in hold.values():
            why.append("hold")
    for version in ordered[: max(newest, 1)]:
        reasons[version.version].append("newest")
    former = [version for version in ordered if version.decision == "promoted" and not version.is_champion]
    if former:
        # csflow.release.challenge measures every challenger against the best champion so far.
        best = max(former, key=lambda version: (version.number("image_auroc") or 0.0, version.version))
        reasons[best.version].append("best so far")
    for version in former_champions(ordered)[:1]:
        reasons[version.version].append("rollback")
    return {number: why for number, why in reasons.items() if why}
