"""Compare two detectors image by image: which decisions change, and which detector separates better.

The scores of two detectors are on different scales. Each detector's ranks of the images, its p-values and its
decisions are compared, never a score of one detector with a score of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from csflow.detector.calibration import Calibration
from csflow.errors import DataError
from csflow.metrics import (
    IMAGE_METRICS,
    PIXEL_METRICS,
    PairedDifference,
    PixelCounts,
    PixelMetric,
    binning_error,
    clopper_pearson,
    paired_bootstrap,
    paired_pixel_bootstrap,
)
from csflow.metrics.ranking import Floats
from csflow.reporting.findings import ImageResult, Rate


class Side(NamedTuple):
    """One of the two detectors: its name, its result for every image, and its calibration."""

    name: str
    images: Sequence[ImageResult]
    calibration: Calibration

    @property
    def scores(self) -> Floats:
        """Return the scores of `images` ``(n,)``."""
        return np.array([result.score for result in self.images], dtype=np.float64)

    @property
    def ranks(self) -> Floats:
        """Return the ranks of `images` ``(n,)`` in [0, 1], 1 the most anomalous; ties share their mean rank."""
        from scipy import stats

        ranked = stats.rankdata(self.scores) - 1.0
        return np.asarray(ranked / max(1, len(self.images) - 1), dtype=np.float64)

    @property
    def detections(self) -> Rate | None:
        """Return the rate of defective images found at the threshold; None without one or without such images."""
        bad = [result for result in self.images if result.label == "defective"]
        if self.calibration.threshold is None or not bad:
            return None
        found = sum(result.decision == "defective" for result in bad)
        return Rate(found, len(bad), clopper_pearson(found, len(bad)))

    @property
    def threshold_rank(self) -> float | None:
        """Return the rank that the threshold would have; None without one."""
        if self.calibration.threshold is None:
            return None
        below = int((self.scores <= self.calibration.threshold).sum())
        return (below - 0.5) / max(1, len(self.images) - 1)


class PixelPair(NamedTuple):
    """Pixel counts of both detectors on the same masks; see `csflow.metrics.evaluation.counted_pixels`."""

    champion: PixelCounts
    challenger: PixelCounts


class DefectDifference(NamedTuple):
    """The difference in image AUROC for one type of defect against all good images.

    Attributes:
        images: Number of defective images of the type.
        champion: AUROC of the champion.
        challenger: AUROC of the challenger.
        paired: Challenger minus champion.
    """

    images: int
    champion: float
    challenger: float
    paired: PairedDifference


@dataclass(frozen=True)
class ChangedDecision:
    """An image about which the two detectors decide differently.

    Attributes:
        index: Index of the image.
        champion: The champion's result.
        challenger: The challenger's result.
        is_mended: True if the challenger is right and the champion wrong; False if it is the other way round.
        shift: Rank by the challenger minus rank by the champion.
    """

    index: int
    champion: ImageResult
    challenger: ImageResult
    is_mended: bool
    shift: float


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same images.

    Attributes:
        line: Name of the product line.
        champion: The detector in service, or the best so far.
        challenger: The detector that may replace it.
        verdict: The gate's verdict, shown verbatim.
        pixels: Pixel counts of both detectors; None without masks.
    """

    line: str
    champion: Side
    challenger: Side
    verdict: str = ""
    pixels: PixelPair | None = None

    def __post_init__(self) -> None:
        """Refuse sides that are not of the same images.

        Raises:
            DataError: If the images differ or there are none.
        """
        first, second = (
            [(r.path, r.label, r.defect) for r in side.images] for side in (self.champion, self.challenger)
        )
        if first != second or not first:
            raise DataError(
                f"Two detectors are compared on the same images in the same order, got {len(first)} of "
                f"{self.champion.name} and {len(second)} of {self.challenger.name}, which differ or are none. "
                "Score both on one manifest."
            )

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Return the labels ``(n,)``, True where an image is defective."""
        return np.array([result.label == "defective" for result in self.champion.images], dtype=bool)

    @cached_property
    def differences(self) -> dict[str, PairedDifference]:
        """Return every image metric of the challenger minus that of the champion; empty if a class is missing."""
        if self.labels.all() or not self.labels.any():
            return {}
        before, after = self.champion.scores, self.challenger.scores
        return {name: paired_bootstrap(before, after, self.labels, metric=name) for name in IMAGE_METRICS}

    @cached_property
    def values(self) -> dict[str, tuple[float, float]]:
        """Return every image metric of champion and challenger; empty if a class is missing."""
        from csflow.metrics import average_precision, f1_max, fpr_at_tpr, image_auroc

        measures = {"image_auroc": image_auroc, "average_precision": average_precision, "f1_max": f1_max,
                    "fpr_at_95_tpr": fpr_at_tpr}  # fmt: skip
        sides = self.champion.scores, self.challenger.scores
        return {name: (measures[name](sides[0], self.labels), measures[name](sides[1], self.labels))
                for name in self.differences}  # fmt: skip

    @cached_property
    def by_defect(self) -> dict[str, DefectDifference]:
        """Return the difference for each type of defect, in alphabetical order; empty if a class is missing."""
        if not self.differences:
            return {}
        defects = np.array([result.defect for result in self.champion.images], dtype=np.str_)
        return {
            str(kind): self._of_defect(~self.labels | (defects == kind)) for kind in np.unique(defects[self.labels])
        }

    def _of_defect(self, rows: npt.NDArray[np.bool_]) -> DefectDifference:
        from csflow.metrics import image_auroc

        labels = self.labels[rows]
        before, after = self.champion.scores[rows], self.challenger.scores[rows]
        paired = paired_bootstrap(before, after, labels)
        return DefectDifference(int(labels.sum()), image_auroc(before, labels), image_auroc(after, labels), paired)

    @cached_property
    def pixel_differences(self) -> dict[PixelMetric, PairedDifference]:
        """Return every pixel metric of the challenger minus that of the champion; empty without masks."""
        if self.pixels is None:
            return {}
        return {name: paired_pixel_bootstrap(*self.pixels, metric=name) for name in PIXEL_METRICS}

    @cached_property
    def pixel_values(self) -> dict[PixelMetric, tuple[float, float]]:
        """Return every pixel metric of champion and challenger; empty without masks."""
        if self.pixels is None:
            return {}
        whole = [counts.masses() for counts in self.pixels]
        return {name: (float(measure(whole[0])[0]), float(measure(whole[1])[0]))
                for name, measure in PIXEL_METRICS.items()}  # fmt: skip

    @cached_property
    def binning_error(self) -> dict[PixelMetric, float]:
        """Return how far each pixel *difference* can be off because the maps are binned: the sum of both bounds."""
        if self.pixels is None:
            return {}
        before, after = (binning_error(counts) for counts in self.pixels)
        return {name: before[name] + after[name] for name in before}

    @cached_property
    def changes(self) -> list[ChangedDecision]:
        """Return the images decided differently: first those spoilt, then those mended, by size of the rank shift."""
        shifts = self.challenger.ranks - self.champion.ranks
        found = [
            ChangedDecision(index, before, after, after.decision == after.label, float(shifts[index]))
            for index, (before, after) in enumerate(zip(self.champion.images, self.challenger.images, strict=True))
            if None not in (before.decision, after.decision) and before.decision != after.decision
        ]
        return sorted(found, key=lambda change: (change.is_mended, -abs(change.shift), change.index))

    @property
    def spoilt(self) -> int:
        """Return the number of images that only the challenger gets wrong."""
        return sum(not change.is_mended for change in self.changes)

    @property
    def mended(self) -> int:
        """Return the number of images that only the champion gets wrong."""
        return sum(change.is_mended for change in self.changes)

    @property
    def decision_p_value(self) -> float | None:
        """Return the p-value of the exact McNemar test that both are wrong equally often; None without changes."""
        from scipy import stats

        return float(stats.binomtest(self.spoilt, len(self.changes)).pvalue) if self.changes else None

    def moved(self, count: int = 6) -> list[int]:
        """Return the indices of the images with an unchanged decision whose rank moved furthest, in that order."""
        shifts = np.abs(self.challenger.ranks - self.champion.ranks)
        changed = {change.index for change in self.changes}
        order = [int(i) for i in np.argsort(-shifts, kind="stable") if int(i) not in changed and shifts[i] > 0]
        return order[:count]

    def shown(self, count: int = 12) -> list[int]:
        """Return the indices of the images to show: changed decisions first, then those that moved furthest."""
        changed = [change.index for change in self.changes][:count]
        return changed + self.moved(min(6, count - len(changed)))


def judge_scores(name: str, images: Sequence[tuple[str, str]], scores: npt.ArrayLike, calibration: Calibration) -> Side:
    """Make one side of a comparison from plain scores.

    Args:
        name: Name of the detector.
        images: Path and type of defect of each image ``(n,)``; the type is '' for a good image.
        scores: ``(n,)``.
        calibration: Of the detector; gives p-values and decisions.
    """
    results = [
        ImageResult(path, "defective" if defect else "good", defect, score, calibration.p_value(score),
                    calibration.decide(score))
        for (path, defect), score in zip(images, np.asarray(scores, dtype=np.float64).tolist(), strict=True)
    ]  # fmt: skip
    return Side(name, results, calibration)
