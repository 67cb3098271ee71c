"""Try the heavy parts of a run on a few images, each in a process of its own, and measure time and memory."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from csflow.config import KINDS, LineConfig
from csflow.system.processes import peak_memory
from csflow.system.threads import prepare_threads

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.detector.detector import Detector
    from csflow.detector.model import Model
    from csflow.detector.prediction import Float32Array
    from csflow.features.entries import Shape
    from csflow.flow.pyramid import Pyramid

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WARM_UP_IMAGES = 4
TRIAL_IMAGES = 12
TRIAL_STEPS = 4
FEWEST_IMAGES = 3
"""Fewest images of a training trial: a covariance needs several."""

FITTED_AT_ONCE = (32, 64)
"""Numbers of images that kinds without epochs are fitted to, from which the time for all is extrapolated."""


@dataclass(frozen=True)
class ExtractionTrial:
    """What the extraction of a few images took: seconds at the start and for each image, and the peak memory."""

    start_seconds: float
    image_seconds: float
    peak: int


@dataclass(frozen=True)
class FittingTrial:
    """What fitting and scoring took with random features.

    Attributes:
        start_seconds: Seconds until a process has imported what every step needs.
        step_seconds: Seconds of an optimiser step; None for kinds without epochs.
        fit_seconds: Seconds of the whole fit of kinds without epochs; None for the others.
        score_seconds: Seconds in which the fitted model scores an image.
        checkpoint_bytes: Bytes on disk while training; 0 without epochs.
        peak: Peak memory in bytes.
    """

    start_seconds: float
    step_seconds: float | None
    fit_seconds: float | None
    score_seconds: float
    checkpoint_bytes: int
    peak: int


class RandomFeatures:
    """Random features of as many images as wanted, of which a batch differs: values do not change how long work takes.

    Args:
        shapes: ``(C, h, w)`` of every feature map.
        images: Number of images.
        distinct: Number of images that differ.
    """

    def __init__(self, shapes: Sequence[Shape], images: int, distinct: int) -> None:
        import torch

        self.shapes = tuple(shapes)
        self.images = images
        self.levels = [torch.randn(min(images, distinct), *shape) for shape in shapes]

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return the features of some images."""
        rows = [index % len(self.levels[0]) for index in indices]
        return [level[rows] for level in self.levels]


def apart(work: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
    """Run in a new process, so that its peak memory can be measured separately."""
    prepare_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **keywords).result()


def try_extraction(line: LineConfig, manifest: Manifest) -> ExtractionTrial:
    """Extract a few images into a temporary store; the first ones include the work that is done once."""
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
    return ExtractionTrial(max(0.0, first - warm_up * image_seconds), image_seconds, peak_memory())


def try_fitting(line: LineConfig, shapes: Sequence[Shape], fitted: int) -> FittingTrial:
    """Fit and score random features.

    Args:
        line: The line.
        shapes: ``(C, h, w)`` of every feature map.
        fitted: Number of images that a run fits.
    """
    from csflow.adapters.mlflow.connection import client_of
    from csflow.system.workspace import Workspace

    seconds = []
    for _ in range(2):  # the second client needs no imports, only a database of its own
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as elsewhere:
            client_of(Workspace(Path(elsewhere)))  # the tracking client takes memory as well
        seconds.append(time.perf_counter() - began)
    start = max(0.0, seconds[0] - seconds[1])
    if KINDS[line.detector].epochs:
        model, step, checkpoint = _train(line, shapes)
        return FittingTrial(start, step, None, _seconds_to_score(model, shapes), checkpoint, peak_memory())
    fits = [_fit(line, shapes, images) for images in dict.fromkeys(min(fitted, size) for size in FITTED_AT_ONCE)]
    fit, score = _extrapolated(fits, fitted)
    return FittingTrial(start, None, fit, score, 0, peak_memory())


def trial_detector(line: LineConfig) -> Detector:
    """Make a detector of a line's kind and size that has learnt nothing but random features."""
    from csflow.detector.calibration import calibrate
    from csflow.detector.detector import Detector
    from csflow.detector.fitting import fit_model
    from csflow.detector.model import score_stored
    from csflow.features.backbone import load_backbone

    backbone = load_backbone(line.features)
    once = line.training.model_copy(update={"epochs": 1})
    features = RandomFeatures(backbone.shapes(line.features), FITTED_AT_ONCE[0], FITTED_AT_ONCE[0])
    with tempfile.TemporaryDirectory() as folder:
        model = fit_model(line.model_copy(update={"training": once}), features, directory=Path(folder))
    return Detector(line, backbone, model, calibrate(*score_stored(model, features), "none"), {})


def score_random(detector: Detector, images: int) -> tuple[Float32Array, Float32Array]:
    """Score random features with a detector; return scores ``(N,)`` and maps ``(N, h, w)`` of the right size."""
    from csflow.detector.model import score_stored

    shapes = detector.backbone.shapes(detector.line.features)
    return score_stored(detector.model, RandomFeatures(shapes, images, FITTED_AT_ONCE[0]))


def _train(line: LineConfig, shapes: Sequence[Shape]) -> tuple[Model, float | None, int]:
    """Train for a few epochs of one batch; the first one, which allocates memory, does not count."""
    from csflow.detector.fitting import fit_model
    from csflow.flow.training import EpochResult

    seconds: list[float] = []

    def note(result: EpochResult) -> None:
        seconds.append(result.seconds)

    trial = line.training.model_copy(update={"epochs": TRIAL_STEPS})
    images = max(line.training.batch_size, FEWEST_IMAGES)
    features = RandomFeatures(shapes, images, images)
    with tempfile.TemporaryDirectory() as folder:
        changed = line.model_copy(update={"training": trial})
        model = fit_model(changed, features, directory=Path(folder), on_epoch=note)
        checkpoint = sum(file.stat().st_size for file in Path(folder).iterdir())
    # Every rotation of an image counts as an image.
    steps = -(-len(features) * line.features.rotations // line.training.batch_size)
    each = [epoch / steps for epoch in seconds[1:]]
    return model, median(each) if each else None, checkpoint


def _fit(line: LineConfig, shapes: Sequence[Shape], images: int) -> tuple[int, float, float]:
    """Fit a kind without epochs; return the number of images, the seconds of the fit, and those to score one image."""
    from csflow.detector.fitting import fit_model

    features = RandomFeatures(shapes, max(images, FEWEST_IMAGES), line.training.batch_size)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = fit_model(line, features, directory=Path(folder))
    return images, time.perf_counter() - began, _seconds_to_score(model, shapes)


def _extrapolated(seconds: Sequence[tuple[int, float, float]], fitted: int) -> tuple[float, float]:
    """Extrapolate the seconds of the fit by a power of the number of images, and those of a score by a line."""
    (few, quick, score), (many, slow, later) = seconds[0], seconds[-1]
    if many >= fitted or few == many:
        return slow, later
    power = min(2.0, max(0.0, math.log(slow / quick) / math.log(many / few)))
    each = max(0.0, (later - score) / (many - few))
    return slow * (fitted / many) ** power, later + each * (fitted - many)


def _seconds_to_score(model: Model, shapes: Sequence[Shape]) -> float:
    from csflow.detector.model import score_stored

    features = RandomFeatures(shapes, WARM_UP_IMAGES, WARM_UP_IMAGES)
    score_stored(model, features)
    began = time.perf_counter()
    score_stored(model, features)
    return (time.perf_counter() - began) / len(features)
