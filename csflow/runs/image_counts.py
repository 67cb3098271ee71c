"""Check that a line has enough images for what its configuration asks for."""

from __future__ import annotations

from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.detector.calibration import threshold_rank
from csflow.errors import DataError
from csflow.runs.assembly import one_of_each_group
from csflow.runs.fitting import images_to_fit


def check_enough(line: LineConfig, manifest: Manifest) -> None:
    """Refuse images that are too few to fit and to calibrate, before anything is computed.

    Args:
        line: The line's configuration.
        manifest: The line's images.

    Raises:
        DataError: If no image or fewer than ``roles.shots`` can be fitted, or if too few are held out for the promised
            false-alarm rate; it names the number that is enough.
    """
    candidates = list(manifest.rows(role="fit").frame["sha256"])
    if not candidates:
        good = len(manifest.rows(split="train"))
        raise DataError(
            f"None of the {good} images in train is left to fit: all are held out. Add good images, or lower "
            "roles.calibrate and roles.gate."
        )
    images_to_fit(line, candidates)
    if line.calibration != "none":
        held_out = one_of_each_group(manifest.rows(role="calibrate"))
        threshold_rank(len(held_out), line.calibration.alpha, line.calibration.confidence)
