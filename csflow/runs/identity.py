"""Identify the code that produces the models and detectors of a line."""

from __future__ import annotations

from csflow.config import KINDS, LineConfig
from csflow.system.code_identity import code_version

MODEL_ROOTS = ("csflow.features.cache_manifest", "csflow.runs.fitting")
"""Modules that, with everything they import, fit a model to stored features."""

DETECTOR_ROOTS = (*MODEL_ROOTS, "csflow.features.store", "csflow.runs.assembly")
"""Modules that, with everything they import, make a detector from images."""


def model_code(line: LineConfig) -> str:
    """Compute a digest of the code that fits a line's kind of detector."""
    return code_version(*MODEL_ROOTS, KINDS[line.detector].implementation)


def detector_code(line: LineConfig) -> str:
    """Compute a digest of the code that determines a line's detector and its results."""
    return code_version(*DETECTOR_ROOTS, KINDS[line.detector].implementation)
