"""Name a detector that a server serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
"""The address that only this machine can reach."""


@dataclass(frozen=True)
class ServedDetector:
    """A detector directory and the version that answers say it is."""

    directory: Path
    version: str = ""
