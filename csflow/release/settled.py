"""Tell if an earlier decision about a version still counts, and which versions were champion before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from csflow.config import LineConfig

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version

GATE = "gate_settings"
"""Tag of a version: the ``gate`` section of the line's YAML by which it was judged, as JSON."""


ABANDONED = "abandoned"
"""Decision about a version whose run ended before the gate could decide."""


def gate_settings(line: LineConfig) -> str:
    """Return the value of the tag :data:`GATE` for a line as it is configured now."""
    return line.gate.model_dump_json()


def is_settled(version: Version, line: LineConfig, hold: Mapping[str, str] | None) -> bool:
    """Return True if a version need not be judged again.

    A version that was held is judged again when the hold is released, one that the gate kept from promotion when the
    settings of the gate are others now, and an abandoned one when a run makes it again.

    Args:
        version: A version of the line.
        line: The line as it is configured now.
        hold: The details of the line's hold; ``None`` if there is none.
    """
    if version.decision == "held":
        return hold is not None
    if version.decision == ABANDONED:
        return False
    if version.decision.startswith("kept_"):
        now = gate_settings(line)
        return version.tags.get(GATE, now) == now  # csflow 0.5 and older did not record them
    return version.decision != ""


def former_champions(versions: Sequence[Version]) -> list[Version]:
    """Return the versions that were champion before the present champion, the last one first.

    A version that was rolled back is not among them.

    Args:
        versions: All versions of one line.
    """
    champion = next((version for version in versions if version.is_champion), None)
    former = [
        version
        for version in versions
        if version.decision == "promoted"
        and not version.is_champion
        and (champion is None or version.champion_order < champion.champion_order)
    ]
    return sorted(former, key=lambda version: version.champion_order, reverse=True)
