"""Estimate time, memory and disk space of a line's run from short trials of its two heavy steps on this machine."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from csflow.config import LineConfig
from csflow.runs.fitting import images_to_fit
from csflow.system.processes import peak_memory

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.features.entries import Shape
    from csflow.features.shared_tier import FeatureTier
    from csflow.flow.pyramid import Pyramid

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WARM_UP_IMAGES = 4
TRIAL_IMAGES = 12
TRIAL_STEPS = 4
FEWEST_IMAGES = 3
"""Fewest images of a training trial: a covariance needs several."""


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
        training_seconds: Seconds of all epochs; None for detectors without epochs.
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
    training_seconds: float | None
    extraction_memory: int
    training_memory: int
    checkpoint_bytes: int
    device: str
    precision: str


def estimate(line: LineConfig, manifest: Manifest, store: Path, tier: FeatureTier | None = None) -> Estimate:
    """Extract a few images, train for a few steps, and extrapolate to a whole run of the line.

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
    extraction = _apart(_try_extraction, line, manifest)
    training = _apart(_try_training, line, plan.shapes)
    steps = line.training.epochs * -(-fitted * line.features.rotations // line.training.batch_size)
    step_seconds = training.step_seconds
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
        training_seconds=None if step_seconds is None else steps * step_seconds,
        extraction_memory=extraction.peak,
        training_memory=training.peak + fitted * plan.entry_bytes,
        checkpoint_bytes=training.checkpoint_bytes,
        device=str(device),
        precision=choose_precision(line.training, device),
    )


@dataclass(frozen=True)
class _ExtractionTrial:
    start_seconds: float
    image_seconds: float
    peak: int


@dataclass(frozen=True)
class _TrainingTrial:
    step_seconds: float | None
    checkpoint_bytes: int
    peak: int


class _RandomFeatures:
    """One batch of random features: the values do not change how long a step takes."""

    def __init__(self, shapes: Sequence[Shape], batch: int) -> None:
        import torch

        self.shapes = tuple(shapes)
        self.levels = [torch.randn(batch, *shape) for shape in shapes]

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        return [level[list(indices)] for level in self.levels]


def _apart(work: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
    """Run in a new process, so that its peak memory can be measured separately."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **keywords).result()


def _try_extraction(line: LineConfig, manifest: Manifest) -> _ExtractionTrial:
    """Extract a few images into a temporary store; the first ones include the work that is done once."""
    import time

    from csflow.data.manifest import Manifest
    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore

    backbone = load_backbone(line.features)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for last in (WARM_UP_IMAGES, WARM_UP_IMAGES + TRIAL_IMAGES):
            began = time.perf_counter()
            some = Manifest(manifest.frame.iloc[:last], manifest.root)
            computed = FeatureStore(Path(folder)).extract(some, line.features, backbone).extracted
            seconds.append((time.perf_counter() - began, computed))
    (first, warm_up), (second, computed) = seconds
    image_seconds = second / computed if computed else first / warm_up
    return _ExtractionTrial(max(0.0, first - warm_up * image_seconds), image_seconds, peak_memory())


def _try_training(line: LineConfig, shapes: Sequence[Shape]) -> _TrainingTrial:
    """Train for a few epochs; the first one, which allocates memory, does not count."""
    from csflow.adapters.mlflow.connection import client_of
    from csflow.detector.fitting import fit_model
    from csflow.flow.training import EpochResult
    from csflow.system.workspace import Workspace

    seconds: list[float] = []

    def note(result: EpochResult) -> None:
        seconds.append(result.seconds)

    trial = line.training.model_copy(update={"epochs": TRIAL_STEPS})
    features = _RandomFeatures(shapes, max(line.training.batch_size, FEWEST_IMAGES))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        client_of(Workspace(Path(elsewhere)))  # the tracking client takes memory as well
        fit_model(line.model_copy(update={"training": trial}), features, directory=Path(folder), on_epoch=note)
        checkpoint = sum(file.stat().st_size for file in Path(folder).iterdir())
    # Every rotation of an image counts as an image.
    steps = -(-len(features) * line.features.rotations // line.training.batch_size)
    each = [epoch / steps for epoch in seconds[1:]]
    return _TrainingTrial(median(each) if each else None, checkpoint, peak_memory())
