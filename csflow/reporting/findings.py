"""The findings of an evaluation, computed from the results of its images."""

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

LOW_RECALL = 0.5
"""Share of the defects below which a report warns that few are found at the threshold."""

SampleGroup = Literal["miss", "false_alarm", "least_certain", "most_certain"]


@dataclass(frozen=True)
class ImageResult:
    """The detector's result for one test image.

    Attributes:
        path: Relative path of the image.
        label: Its true label.
        defect: Its type of defect; '' for a good image.
        score: Its anomaly score.
        p_value: Share of good images that score at least as high; None without calibration.
        decision: What the detector decided; None without a threshold.
    """

    path: str
    label: Literal["good", "defective"]
    defect: str
    score: float
    p_value: float | None
    decision: Literal["good", "defective"] | None

    @property
    def kind(self) -> str:
        """Return the type of defect, or the label if that has no name."""
        return self.defect or self.label


@dataclass(frozen=True)
class Sample:
    """A test image that the report shows, with its overlay from `csflow.detector.heatmap.overlay`."""

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
    """Pixel metrics of the maps against the masks.

    Attributes:
        metrics: From `csflow.metrics.pixel_metrics`.
        by_defect: The same for each type of defect that has masks.
        error: Bound of how far each value can be from the exact one.
    """

    metrics: Mapping[PixelMetric, Measured]
    by_defect: Mapping[str, Mapping[PixelMetric, Measured]]
    error: Mapping[PixelMetric, float]


class Rate(NamedTuple):
    """A number of events among a number of trials, with the exact interval of the rate; None without trials."""

    events: int
    trials: int
    interval: Interval | None

    @property
    def text(self) -> str:
        """Return the rate in words: "25 of 30 (83.3 %, 95 % interval 65.3 to 94.4 %)"."""
        if self.interval is None:
            return f"{self.events} of {self.trials}"
        share, low, high = (100 * value for value in (self.events / self.trials, *self.interval))
        return f"{self.events} of {self.trials} ({share:.1f} %, 95 % interval {low:.1f} to {high:.1f} %)"


class DefectRow(NamedTuple):
    """One type of defect: its images, how many were called defective, and its metrics against all good test images."""

    defect: str
    images: int
    detected: int | None
    image_auroc: float | None
    metrics: Mapping[str, Measured]


@dataclass(frozen=True)
class Evaluation:
    """All findings that a report shows. What follows from the images is computed from them, not passed in.

    Attributes:
        line: Name of the product line.
        images: All test images.
        calibration: Of the detector.
        pixels: None if no defective image has a mask.
        samples: Images to show, chosen with `csflow.reporting.selection.choose_samples`.
        examples: One typical image of each kind, chosen with `csflow.reporting.selection.choose_examples`.
        features: Some features of the training images; None shows no histograms of them.
        nll: Training curve, nll per dimension of each epoch; may be empty.
        lineage: Origin of the detector (data, revision, run, backbone, …), shown verbatim.
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
        """Return the scores of `images` ``(n,)``."""
        return np.array([result.score for result in self.images], dtype=np.float64)

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Return the labels of `images` ``(n,)``, True = defective."""
        return np.array([result.label == "defective" for result in self.images], dtype=bool)

    @property
    def has_both_classes(self) -> bool:
        """Return True if there are good and defective test images, so that an AUROC exists."""
        return bool(self.labels.any() and not self.labels.all())

    @cached_property
    def image_metrics(self) -> dict[ImageMetric, Measured]:
        """Return every image metric with its 95 % interval; empty without good or without defective test images."""
        return image_metrics(self.scores, self.labels) if self.has_both_classes else {}

    @property
    def metrics(self) -> dict[str, Measured]:
        """Return every image and pixel metric that exists, with its 95 % interval."""
        return _together(self.image_metrics, self.pixels.metrics if self.pixels else {})

    @property
    def image_auroc(self) -> float | None:
        """Return the image AUROC; None without good or without defective test images."""
        return self.image_metrics["image_auroc"].value if self.has_both_classes else None

    @property
    def interval(self) -> Interval | None:
        """Return the 95 % interval of `image_auroc`; None without one."""
        return Interval(*self.image_metrics["image_auroc"][1:]) if self.has_both_classes else None

    @property
    def pixel_auroc(self) -> float | None:
        """Return the pixel AUROC; None without masks."""
        return self.pixels.metrics["pixel_auroc"].value if self.pixels else None

    @cached_property
    def roc(self) -> RocCurve | None:
        """Return the ROC curve; None without good or without defective test images."""
        return roc_curve(self.scores, self.labels) if self.has_both_classes else None

    @cached_property
    def false_alarms(self) -> Rate | None:
        """Return the rate of good test images called defective; None without a threshold."""
        return self._rate("good", "defective")

    @cached_property
    def detections(self) -> Rate | None:
        """Return the rate of defective test images found at the threshold; None without a threshold."""
        return self._rate("defective", "defective")

    @property
    def finds_too_few(self) -> bool:
        """Return True if fewer than :data:`LOW_RECALL` of the defective test images are found at the threshold."""
        rate = self.detections
        return rate is not None and rate.events < LOW_RECALL * rate.trials

    @cached_property
    def misses(self) -> Rate | None:
        """Return the rate of defective test images called good; None without a threshold."""
        return self._rate("defective", "good")

    @property
    def operating_point(self) -> tuple[float, float] | None:
        """Return false-alarm rate and detection rate at the threshold; None if either was not measured."""
        alarms, misses = self.false_alarms, self.misses
        if not alarms or not misses or not alarms.trials or not misses.trials:
            return None
        return alarms.events / alarms.trials, 1 - misses.events / misses.trials

    @property
    def promise_refuted(self) -> bool:
        """Return True if a detector that keeps its promise has this many false alarms or more in under 1 % of cases."""
        rate = self.false_alarms
        surprise = self.calibration.surprise(rate.events, rate.trials) if rate else None
        return surprise is not None and surprise < 0.01

    @cached_property
    def defects(self) -> list[DefectRow]:
        """Return one row a type of defect, by name."""
        kinds = [result.defect for result in self.images]
        measured = by_defect(self.scores, self.labels, kinds) if self.has_both_classes else {}
        pixels = self.pixels.by_defect if self.pixels else {}
        names = sorted({result.defect for result in self.images if result.label == "defective"})
        return [self._defect_row(name, _together(measured.get(name, {}), pixels.get(name, {}))) for name in names]

    def times_threshold(self, score: float) -> float | None:
        """Divide a score by the threshold; see :func:`times_threshold`."""
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
    """Divide a score by the threshold; None where that means nothing (no threshold, or a value below 0)."""
    return score / threshold if threshold is not None and threshold > 0 and score >= 0 else None


def _together(images: Mapping[ImageMetric, Measured], pixels: Mapping[PixelMetric, Measured]) -> dict[str, Measured]:
    return {name: found for part in (images.items(), pixels.items()) for name, found in part}
