"""Two detectors image by image: what a new one decides otherwise, and whether it separates better.

Scores of two detectors are on different scales. What is compared is how each *ranks* the images, and its own p-values
and decisions; never a score of one with a score of the other.
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
    paired_bootstrap,
    paired_pixel_bootstrap,
)
from csflow.reporting.findings import ImageResult

Floats = npt.NDArray[np.float64]


class Side(NamedTuple):
    """One of the two detectors: how it is called, and what it said about every image."""

    name: str
    images: Sequence[ImageResult]
    calibration: Calibration

    @property
    def scores(self) -> Floats:
        """Scores of `images`."""
        return np.array([result.score for result in self.images], dtype=np.float64)

    @property
    def ranks(self) -> Floats:
        """Places of `images` among themselves in [0, 1], 1 the most anomalous; ties share their mean."""
        from scipy import stats

        ranked = stats.rankdata(self.scores) - 1.0
        return np.asarray(ranked / max(1, len(self.images) - 1), dtype=np.float64)

    @property
    def threshold_rank(self) -> float | None:
        """Where the threshold lies among the ranks; None without one."""
        if self.calibration.threshold is None:
            return None
        below = int((self.scores <= self.calibration.threshold).sum())
        return (below - 0.5) / max(1, len(self.images) - 1)


class PixelPair(NamedTuple):
    """Pixels of both detectors' maps, counted on the same masks; see `csflow.metrics.evaluation.counted_pixels`."""

    champion: PixelCounts
    challenger: PixelCounts


class DefectDifference(NamedTuple):
    """Image AUROC of one type of defect against all good images.

    Attributes:
        images: Defective images of the type.
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
    """An image the two decide about differently.

    Attributes:
        index: Of the image.
        champion: What the champion said.
        challenger: What the challenger says.
        is_mended: Whether the challenger is right; otherwise it spoilt what was right.
        shift: Its rank by the challenger minus that by the champion.
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
        champion: What is in service, or the best there was.
        challenger: What may take its place.
        verdict: What the gate made of it, shown as it is.
        pixels: Of both detectors' maps; None without masks.
    """

    line: str
    champion: Side
    challenger: Side
    verdict: str = ""
    pixels: PixelPair | None = None

    def __post_init__(self) -> None:
        """Refuse two lists of different images."""
        first, second = (
            [(r.path, r.label, r.defect) for r in side.images] for side in (self.champion, self.challenger)
        )
        if first != second or not first:
            raise DataError(
                f"Two detectors are compared on the same images in the same order, got {len(first)} of "
                f"{self.champion.name} and {len(second)} of {self.challenger.name} that are not the same, or none. "
                "Score both on one manifest."
            )

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """True where an image is defective."""
        return np.array([result.label == "defective" for result in self.champion.images], dtype=bool)

    @cached_property
    def differences(self) -> dict[str, PairedDifference]:
        """Every image metric of the challenger minus that of the champion; empty if a class is missing."""
        if self.labels.all() or not self.labels.any():
            return {}
        before, after = self.champion.scores, self.challenger.scores
        return {name: paired_bootstrap(before, after, self.labels, metric=name) for name in IMAGE_METRICS}

    @cached_property
    def values(self) -> dict[str, tuple[float, float]]:
        """Every image metric of champion and challenger; empty if a class is missing."""
        from csflow.metrics import average_precision, f1_max, fpr_at_tpr, image_auroc

        measures = {"image_auroc": image_auroc, "average_precision": average_precision, "f1_max": f1_max,
                    "fpr_at_95_tpr": fpr_at_tpr}  # fmt: skip
        sides = self.champion.scores, self.challenger.scores
        return {name: (measures[name](sides[0], self.labels), measures[name](sides[1], self.labels))
                for name in self.differences}  # fmt: skip

    @cached_property
    def by_defect(self) -> dict[str, DefectDifference]:
        """Image AUROC of each type of defect, in alphabetical order; empty if a class is missing."""
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
        """Every pixel metric of the challenger minus that of the champion; empty without masks."""
        if self.pixels is None:
            return {}
        return {name: paired_pixel_bootstrap(*self.pixels, metric=name) for name in PIXEL_METRICS}

    @cached_property
    def pixel_values(self) -> dict[PixelMetric, tuple[float, float]]:
        """Every pixel metric of champion and challenger; empty without masks."""
        if self.pixels is None:
            return {}
        whole = [counts.masses() for counts in self.pixels]
        return {name: (float(measure(whole[0])[0]), float(measure(whole[1])[0]))
                for name, measure in PIXEL_METRICS.items()}  # fmt: skip

    @cached_property
    def binning_error(self) -> dict[PixelMetric, float]:
        """How far each pixel *difference* can be off because the maps are binned: the sum of both bounds."""
        if self.pixels is None:
            return {}
        before, after = (binning_error(counts) for counts in self.pixels)
        return {name: before[name] + after[name] for name in before}

    @cached_property
    def changes(self) -> list[ChangedDecision]:
        """Images decided differently: those spoilt first, then those mended, the largest shift of rank first."""
        shifts = self.challenger.ranks - self.champion.ranks
        found = [
            ChangedDecision(index, before, after, after.decision == after.label, float(shifts[index]))
            for index, (before, after) in enumerate(zip(self.champion.images, self.challenger.images, strict=True))
            if None not in (before.decision, after.decision) and before.decision != after.decision
        ]
        return sorted(found, key=lambda change: (change.is_mended, -abs(change.shift), change.index))

    @property
    def spoilt(self) -> int:
        """Images the challenger alone gets wrong."""
        return sum(not change.is_mended for change in self.changes)

    @property
    def mended(self) -> int:
        """Images the champion alone gets wrong."""
        return sum(change.is_mended for change in self.changes)

    @property
    def decision_p_value(self) -> float | None:
        """Whether chance explains that one is wrong more often (exact McNemar test); None without changes."""
        from scipy import stats

        return float(stats.binomtest(self.spoilt, len(self.changes)).pvalue) if self.changes else None

    def moved(self, count: int = 6) -> list[int]:
        """Images of the same decision whose rank moved furthest, the furthest first."""
        shifts = np.abs(self.challenger.ranks - self.champion.ranks)
        changed = {change.index for change in self.changes}
        order = [int(i) for i in np.argsort(-shifts, kind="stable") if int(i) not in changed and shifts[i] > 0]
        return order[:count]

    def shown(self, count: int = 12) -> list[int]:
        """Images worth a picture: changed decisions first, then what moved furthest."""
        changed = [change.index for change in self.changes][:count]
        return changed + self.moved(min(6, count - len(changed)))


def judge_scores(name: str, images: Sequence[tuple[str, str]], scores: npt.ArrayLike, calibration: Calibration) -> Side:
    """One side of a comparison from plain scores.

    Args:
        name: Of the detector.
        images: Path and type of defect of each image, '' for a good one ``(n,)``.
        scores: ``(n,)``.
        calibration: Of the detector; gives p-values and decisions.
    """
    results = [
        ImageResult(path, "defective" if defect else "good", defect, score, calibration.p_value(score),
                    calibration.decide(score))
        for (path, defect), score in zip(images, np.asarray(scores, dtype=np.float64).tolist(), strict=True)
    ]  # fmt: skip
    return Side(name, results, calibration)
