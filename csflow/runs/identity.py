"""Name the code that models and detectors of a line are made by."""

from __future__ import annotations

from csflow.config import KINDS, LineConfig
from csflow.system.code_identity import code_version


def model_code(line: LineConfig) -> str:
    """Digest the code that fits a line's kind of detector."""
    return code_version("csflow.runs.fitting", KINDS[line.detector].implementation)


def detector_code(line: LineConfig) -> str:
    """Digest the code that decides what a line's detector is and says, given its images and configuration."""
    return code_version("csflow.runs.fitting", "csflow.runs.assembly", KINDS[line.detector].implementation)
