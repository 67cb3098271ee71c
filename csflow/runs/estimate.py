"""Estimate time, memory and disk space of extraction and training from short trials on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.runs.fitting import images_to_fit
from csflow.runs.trials import apart, try_extraction, try_fitting

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.features.shared_tier import FeatureTier


@dataclass(frozen=True)
class Estimate:
    """The time, memory and disk space that a run is expected to take.

    Attributes:
        images: Number of images of the line.
        fitted: Number of good training images that the detector is fitted to.
        to_extract: Number of images whose features are not in the store yet.
        features_bytes: Bytes on disk for the features of all images.
        new_features_bytes: Bytes that are still to be written.
        extraction_seconds: Seconds of the step ``cache_features`` without imports.
        training_seconds: Seconds of all epochs, or of the fit of kinds without epochs.
        score_seconds: Seconds in which the fitted model scores an image whose features are stored.
        start_seconds: Seconds in which the process of a step starts.
        extraction_memory: Peak memory of the process that extracts, in bytes.
        training_memory: Peak memory of the process that trains, in bytes, including the features that it reads.
        checkpoint_bytes: Bytes on disk while training; 0 without epochs.
        device: The device it trains on.
        precision: The precision it trains in.
    """

    images: int
    fitted: int
    to_extract: int
    features_bytes: int
    new_features_bytes: int
    extraction_seconds: float
    training_seconds: float
    score_seconds: float
    start_seconds: float
    extraction_memory: int
    training_memory: int
    checkpoint_bytes: int
    device: str
    precision: str


def estimate(line: LineConfig, manifest: Manifest, store: Path, tier: FeatureTier | None = None) -> Estimate:
    """Extract a few images, train for a few steps, and extrapolate to the two steps of a run that compute most.

    Args:
        line: The line.
        manifest: The line's images, some of which are read for the trial.
        store: Folder of the feature store, which is only read, to see which features it has.
        tier: The tier that all runs share; features in it are copied instead of extracted.

    Raises:
        ConfigError: If the configuration cannot work.
        DataError: If there is no image to fit, or an image is damaged.
    """
    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore
    from csflow.flow.device import choose_device, choose_precision

    fitted = len(images_to_fit(line, list(manifest.rows(role="fit").frame["sha256"])))
    backbone = load_backbone(line.features)
    plan = FeatureStore(store, tier).plan(manifest, line.features, backbone)
    extraction = apart(try_extraction, line, manifest)
    training = apart(try_fitting, line, plan.shapes, fitted)
    steps = line.training.epochs * -(-fitted * line.features.rotations // line.training.batch_size)
    device = choose_device(line.training)
    missing = len(plan.missing)
    written = missing + len(plan.shared)
    return Estimate(
        images=len(manifest),
        fitted=fitted,
        to_extract=missing,
        features_bytes=len(manifest) * plan.entry_bytes,
        new_features_bytes=written * plan.entry_bytes,
        extraction_seconds=extraction.start_seconds + missing * extraction.image_seconds if missing else 0.0,
        training_seconds=training.fit_seconds or steps * (training.step_seconds or 0.0),
        score_seconds=training.score_seconds,
        start_seconds=training.start_seconds,
        extraction_memory=extraction.peak,
        training_memory=training.peak + fitted * plan.entry_bytes,
        checkpoint_bytes=training.checkpoint_bytes,
        device=str(device),
        precision=choose_precision(line.training, device),
    )
