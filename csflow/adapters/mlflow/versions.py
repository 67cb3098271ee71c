"""Describe a version of a line's registered model: its number, its aliases and its tags.

==================================== ==============================================================
``content_key``                      digest of the data, configuration and code it was made from
``data_md5, data_digest, git_rev``   identity of the data
``detector_digest``                  SHA-256 over the detector directory
``image_auroc (_low, _high)``,       measured on the test images at that time
``pixel_auroc``
``defects_found``                    how many defective test images were found at the threshold, in words
``threshold, alpha``                 threshold of its decisions, and the false-alarm rate promised for it
``backbone, seed``                   how it was trained
``features_space, features_digest``  the features it was made from; the list is an artifact of its run
``model_key``                        the fitted model in the workspace
``decision, decision_reason``        what the gate decided and why; absent before the gate
``gate_settings``                    the ``gate`` section of the line's YAML at that decision
``champion_since``                   when it last became champion, in UTC
==================================== ==============================================================

The alias ``champion`` names the version that should be served, ``challenger`` the one that was registered last and is
not champion. The registered model's tag ``hold`` says that a person
rolled back and that no retrain may replace the champion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from csflow.config import LINE_NAME
from csflow.errors import ConfigError

CHAMPION = "champion"
"""The alias of the version that should be served."""

CHALLENGER = "challenger"
"""The alias of the version that was registered last, until it becomes champion."""

CHAMPION_SINCE = "champion_since"
"""Tag of a version: when it last became champion, in UTC as ISO 8601 with microseconds."""

LEFT_ALONE = "published_without_version"
"""Tag of a registered model: digests of published detectors that have no version in it, as a person accepted."""

LONGEST_TAG = 5000
"""Number of characters that MLflow keeps of a tag's value."""


@dataclass(frozen=True)
class Version:
    """One version of a line's registered model.

    Attributes:
        line: The product line.
        version: Its number; the first is 1.
        aliases: Its aliases, for instance ``("champion",)``.
        run_id: The MLflow run that made it.
        created: When it was registered, in UTC.
    """

    line: str
    version: int
    run_id: str
    created: datetime
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_champion(self) -> bool:
        """Return True if it is the version that should be served."""
        return CHAMPION in self.aliases

    @property
    def keeping_aliases(self) -> tuple[str, ...]:
        """Return the aliases for which the version must stay: all but ``challenger``, which only says it is new."""
        return tuple(alias for alias in self.aliases if alias != CHALLENGER)

    @property
    def decision(self) -> str:
        """Return the gate's decision: ``promoted``, ``kept_worse`` or ``kept_insufficient``; empty before the gate.

        ``abandoned`` stands for a version that never came to the gate and will not.
        """
        return self.tags.get("decision", "")

    @property
    def was_champion(self) -> bool:
        """Return True if it is champion or was before."""
        return self.is_champion or CHAMPION_SINCE in self.tags or self.decision in {"promoted", "rolled_back"}

    @property
    def champion_order(self) -> tuple[str, int]:
        """Return a key that sorts versions by the time at which they became champion.

        Versions of csflow 0.5 and older have no such time; they come first, in the order of their numbers.
        """
        return self.tags.get(CHAMPION_SINCE, ""), self.version

    def number(self, tag: str) -> float | None:
        """Return a tag such as ``image_auroc`` as a number; ``None`` if the version has no such figure."""
        try:
            return float(self.tags[tag])
        except (KeyError, ValueError):
            return None


def model_name(line: str) -> str:
    """Return the name of a line's registered model.

    Raises:
        ConfigError: If ``line`` cannot be the name of a line.

    >>> model_name("tiles")
    'csflow-tiles'
    """
    if not re.fullmatch(LINE_NAME, line):
        raise ConfigError(
            f"{line!r} cannot be a line: names are up to 50 lower-case letters, digits and inner hyphens. "
            "See csflow lines."
        )
    return f"csflow-{line}"
