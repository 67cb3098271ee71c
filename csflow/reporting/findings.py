"""What an evaluation found. Everything that follows from the images' scores is computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from csflow.detector.calibration import Calibration
from csflow.metrics import (
    ImageMetric,
    Interval,
    Measured,
    PixelMetric,
    RocCurve,
    by_defect,
    clopper_pearson,
    image_metrics,
    roc_curve,
)
from csflow.reporting.normality import FeatureSample

SampleGroup = Literal["miss", "false_alarm", "least_certain", "most_certain"]


@dataclass(frozen=True)
class ImageResult:
    """What the detector said about one test image."""

    path: str
    label: Literal["good", "defective"]
    defect: str
    score: float
    p_value: float | None
    decision: Literal["good", "defective"] | None

    @property
    def kind(self) -> str:
        """Its type of defect, or its label if that has no name."""
        return self.defect or self.label


@dataclass(frozen=True)
class Sample:
    """A test image worth looking at, with its overlay from `csflow.detector.heatmap.overlay`."""

    group: SampleGroup
    result: ImageResult
    image: Image.Image
    overlay: Image.Image


@dataclass(frozen=True)
class Example:
    """A typical test image of its kind, with its anomaly map ``(h, w)``."""

    result: ImageResult
    image: Image.Image
    map2d: npt.NDArray[np.float32]


class PixelFindings(NamedTuple):
    """How well the maps find the masks.

    Attributes:
        metrics: From `csflow.metrics.pixel_metrics`.
        by_defect: The same of each type of defect that has masks.
        error: How far each value can be from that of maps that are not binned.
    """

    metrics: Mapping[PixelMetric, Measured]
    by_defect: Mapping[str, Mapping[PixelMetric, Measured]]
    error: Mapping[PixelMetric, float]


class Rate(NamedTuple):
    """``events`` of ``trials`` images and the exact interval of their rate (None without trials)."""

    events: int
    trials: int
    interval: Interval | None


class DefectRow(NamedTuple):
    """One defect type: how many images, how many called defective, and its metrics against all good test images."""

    defect: str
    images: int
    detected: int | None
    image_auroc: float | None
    metrics: Mapping[str, Measured]


@dataclass(frozen=True)
class Evaluation:
    """Everything a report tells. What follows from the images is computed from them, not passed in.

    Attributes:
        line: Name of the product line.
        images: All test images.
        calibration: Of the detector.
        pixels: None if no defective image has a mask.
        samples: Images to show, chosen with `csflow.reporting.selection.choose_samples`.
        examples: One typical image of each kind, chosen with `csflow.reporting.selection.choose_examples`.
        features: Some features of the training images; None shows no histograms of them.
        nll: Training curve, nll per dimension of each epoch; may be empty.
        lineage: What it came from (data, revision, run, backbone, …), shown as it is.
    """

    line: str
    images: Sequence[ImageResult]
    calibration: Calibration
    pixels: PixelFindings | None = None
    samples: Sequence[Sample] = ()
    examples: Sequence[Example] = ()
    features: FeatureSample | None = None
    nll: Sequence[float] = ()
    lineage: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """Scores of `images`."""
        return np.array([result.score for result in self.images], dtype=np.float64)

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """True where `images` are defective."""
        return np.array([result.label == "defective" for result in self.images], dtype=bool)

    @property
    def has_both_classes(self) -> bool:
        """Whether an AUROC exists."""
        return bool(self.labels.any() and not self.labels.all())

    @cached_property
    def image_metrics(self) -> dict[ImageMetric, Measured]:
        """Every image metric with its 95 % interval; empty without good or without defective test images."""
        return image_metrics(self.scores, self.labels) if self.has_both_classes else {}

    @property
    def metrics(self) -> dict[str, Measured]:
        """Every metric that exists, of images and pixels, with its 95 % interval."""
        return _together(self.image_metrics, self.pixels.metrics if self.pixels else {})

    @property
    def image_auroc(self) -> float | None:
        """Image AUROC; None without good or without defective test images."""
        return self.image_metrics["image_auroc"].value if self.has_both_classes else None

    @property
    def interval(self) -> Interval | None:
        """95 % bootstrap interval of `image_auroc`."""
        return Interval(*self.image_metrics["image_auroc"][1:]) if self.has_both_classes else None

    @property
    def pixel_auroc(self) -> float | None:
        """Pixel AUROC; None without masks."""
        return self.pixels.metrics["pixel_auroc"].value if self.pixels else None

    @cached_property
    def roc(self) -> RocCurve | None:
        """ROC curve; None as `image_auroc`."""
        return roc_curve(self.scores, self.labels) if self.has_both_classes else None

    @cached_property
    def false_alarms(self) -> Rate | None:
        """Good test images called defective; None without a threshold."""
        return self._rate("good", "defective")

    @cached_property
    def misses(self) -> Rate | None:
        """Defective test images called good; None without a threshold."""
        return self._rate("defective", "good")

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """False-alarm rate and detection rate at the threshold; None if either was not measured."""
        alarms, misses = self.false_alarms, self.misses
        if not alarms or not misses or not alarms.trials or not misses.trials:
            return None
        return alarms.events / alarms.trials, 1 - misses.events / misses.trials

    @property
    def promise_refuted(self) -> bool:
        """Whether chance would give good test images so many false alarms in under 1 % of evaluations."""
        rate = self.false_alarms
        surprise = self.calibration.surprise(rate.events, rate.trials) if rate else None
        return surprise is not None and surprise < 0.01

    @cached_property
    def defects(self) -> list[DefectRow]:
        """One row a defect type, by name."""
        kinds = [result.defect for result in self.images]
        measured = by_defect(self.scores, self.labels, kinds) if self.has_both_classes else {}
        pixels = self.pixels.by_defect if self.pixels else {}
        names = sorted({result.defect for result in self.images if result.label == "defective"})
        return [self._defect_row(name, _together(measured.get(name, {}), pixels.get(name, {}))) for name in names]

    def times_threshold(self, score: float) -> float | None:
        """How many times the threshold a score is; None where that means nothing (log-likelihoods below 0)."""
        return times_threshold(score, self.calibration.threshold)

    def _rate(self, label: str, decision: str) -> Rate | None:
        if self.calibration.threshold is None:
            return None
        relevant = [result for result in self.images if result.label == label]
        events = sum(result.decision == decision for result in relevant)
        return Rate(events, len(relevant), clopper_pearson(events, len(relevant)) if relevant else None)

    def _defect_row(self, name: str, metrics: Mapping[str, Measured]) -> DefectRow:
        judged = [r for r in self.images if r.label == "defective" and r.defect == name]
        detected = sum(r.decision == "defective" for r in judged)
        auroc = metrics["image_auroc"].value if "image_auroc" in metrics else None
        return DefectRow(name, len(judged), None if self.calibration.threshold is None else detected, auroc, metrics)


def times_threshold(score: float, threshold: float | None) -> float | None:
    """How many times the threshold a score is; None where that means nothing (no threshold, or one below 0)."""
    return score / threshold if threshold is not None and threshold > 0 and score >= 0 else None


def _together(images: Mapping[ImageMetric, Measured], pixels: Mapping[PixelMetric, Measured]) -> dict[str, Measured]:
    return {name: found for part in (images.items(), pixels.items()) for name, found in part}
