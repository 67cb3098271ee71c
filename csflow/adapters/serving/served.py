"""The detector that a server is asked to serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
"""The address that is reachable from this machine only."""


@dataclass(frozen=True)
class ServedDetector:
    """A detector to serve.

    Attributes:
        directory: The detector directory.
        version: The version that responses name; by default taken from CSFLOW_VERSION or the directory's digest.
    """

    directory: Path
    version: str = ""
