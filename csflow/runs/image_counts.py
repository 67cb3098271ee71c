"""Check that a line has enough images for what its configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.detector.calibration import threshold_rank
from csflow.errors import DataError
from csflow.runs.assembly import one_of_each_group
from csflow.runs.fitting import images_to_fit

Arguments = ParamSpec("Arguments")


def check_size(line: LineConfig) -> tuple[int, ...]:
    """Return the sides in pixels at which the backbone reads an image, finest first.

    Raises:
        ConfigError: If the image size does not fit the number of scales; the message names the nearest that do.
    """
    from csflow.features.backbone import check_pyramid

    return check_pyramid(line.features)


def check_enough(line: LineConfig, manifest: Manifest) -> None:
    """Refuse images that are too few to fit and to calibrate, before anything is computed.

    Args:
        line: The line's configuration.
        manifest: The line's images.

    Raises:
        DataError: If no image or fewer than ``roles.shots`` can be fitted, or if too few are held out for the promised
            false-alarm rate; it names the number that is enough.
    """
    if missing := shortages(line, manifest):
        raise DataError(" ".join(missing))


def shortages(line: LineConfig, manifest: Manifest) -> list[str]:
    """Say in one sentence each which images are too few, and how many are enough.

    Args:
        line: The line's configuration.
        manifest: The line's images.
    """
    missing = []
    candidates = list(manifest.rows(role="fit").frame["sha256"])
    if not candidates:
        good = len(manifest.rows(split="train"))
        missing.append(
            f"None of the {good} images in train is left to fit: all are held out. Add good images, or lower "
            "roles.calibrate and roles.gate."
        )
    else:
        missing += _refusal(images_to_fit, line, candidates)
    if line.calibration != "none":
        held_out = one_of_each_group(manifest.rows(role="calibrate"))
        missing += _refusal(threshold_rank, len(held_out), line.calibration.alpha, line.calibration.confidence)
    return missing


def _refusal(check: Callable[Arguments, object], *given: Arguments.args, **named: Arguments.kwargs) -> list[str]:
    """Return the message with which a check refuses what it is given; empty if it accepts it."""
    try:
        check(*given, **named)
    except DataError as error:
        return [str(error)]
    return []
