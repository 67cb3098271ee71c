"""Assemble a detector from a fitted model, its trunk, and thresholds calibrated on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.detector.calibration import calibrate
from csflow.detector.detector import Detector
from csflow.detector.model import score_stored
from csflow.detector.model_file import load_model, round_to_stored
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.synthetic.paste import MIN_SIDE, paste_defects

REACH_IMAGES = 24
"""Most held-out images on which defects are drawn to fix the colours of the maps."""


def assemble(
    line: LineConfig, manifest: Manifest, cached: CacheManifest, model: Path, lineage: Mapping[str, Any]
) -> Detector:
    """Calibrate a fitted model on held-out images and join it with its trunk.

    Args:
        line: The line's configuration.
        manifest: The line's images.
        cached: Features of at least the images held out for calibration.
        model: The file that :func:`csflow.detector.model_file.save_model` wrote.
        lineage: Where the detector comes from, as plain JSON values.

    Raises:
        DataError: If too few images are held out for the promised false-alarm rate.
        CacheError: If a stored feature is damaged.
        ModelError: If the model does not fit the configuration.
    """
    fitted = load_model(model, line, cached.shapes)
    round_to_stored(fitted)
    held_out = _for_calibration(manifest)
    scores, maps = score_stored(fitted, cached.open(list(held_out.frame["sha256"])))
    backbone = load_backbone(line.features)
    reach = _reach(Detector(line, backbone, fitted, calibrate(scores, maps, "none"), {}), held_out)
    calibration = calibrate(scores, maps, line.calibration, reach=reach)
    return Detector(line, backbone, fitted, calibration, lineage)


def one_of_each_group(manifest: Manifest) -> Manifest:
    """Keep one image of each group: the one with the smallest digest, which is as good as a random draw.

    Images of one part look nearly the same: counted separately, they would make the threshold look more reliable than
    it is.
    """
    frame = manifest.frame
    part = frame["group"].where(frame["group"] != "", frame["sha256"])
    kept = frame.sort_values("sha256").groupby(part, sort=False).head(1).sort_index()
    return type(manifest)(kept.reset_index(drop=True), manifest.root)


def _for_calibration(manifest: Manifest) -> Manifest:
    """Return the held-out images, or the fitted ones for the colour scale of a line that holds out none."""
    held_out = manifest.rows(role="calibrate")
    return one_of_each_group(held_out if len(held_out) else manifest.rows(role="fit"))


def _reach(detector: Detector, held_out: Manifest) -> float | None:
    """Measure the largest map value of defects drawn on held-out good images, for the top of the colour scale.

    Test images must not fix anything, and good images alone do not show how a kind of detector answers to a defect.
    The images are made small first: the detector sees them no larger, and drawing takes time in proportion.

    Returns:
        The value; None if the images are too small to draw on.
    """
    drawn: list[Image.Image] = []
    side = 2 * detector.line.features.image_size
    for number, file in enumerate(held_out.files[:REACH_IMAGES]):
        image = detector.read(file)
        image.thumbnail((side, side))
        if min(image.size) >= MIN_SIDE:
            drawn += paste_defects([image], number)[0]
    peaks = [float(prediction.anomaly_map.max()) for prediction in detector.predict(drawn)]
    return max(peaks, default=None)
