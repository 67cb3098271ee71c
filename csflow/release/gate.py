"""Decide whether a challenger may replace the champion, and give the reasons; nothing is read or written.

Both detectors are scored on the same current images. The reference is the *best* champion so far, chosen
by the caller: if it were the last one, a small loss could be accepted again every night.

The rule, with ``d`` the AUROC of challenger minus reference and ``[low, high]`` its paired bootstrap interval:

* promoted if ``low >= -margin``: the loss is shown to be at most the margin;
* kept, worse, if ``d < -margin`` and ``high < 0``, or if the challenger separates no better than chance;
* kept, not enough evidence, otherwise, with an estimate of how many images would allow a decision.

With fewer than `MIN_IMAGES` images of either kind no champion is replaced: so few cannot tell two detectors apart.
If both detectors separate all images perfectly, their difference is 0, however few the images are: the challenger is
promoted, and the reason says that the margin was not measured, and what these images do show. The reasons for this
rule are in ``docs/decisions``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from csflow.config import GateConfig
from csflow.errors import DataError
from csflow.metrics import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    clopper_pearson,
    image_auroc,
    newcombe_limit,
    paired_bootstrap,
)

Outcome = Literal["promoted", "kept_worse", "kept_insufficient"]
Evidence = dict[str, float | int | str]

MIN_IMAGES = 10
"""Fewest good, and fewest defective, images with which a champion can be replaced."""

_IMPRACTICAL = 1_000_000


@dataclass(frozen=True)
class GateDecision:
    """The gate's decision, its reason, and the numbers that it is based on."""

    outcome: Outcome
    reason: str
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class GoodOnlyEvidence:
    """The results of one detector for a line without labelled defects.

    Attributes:
        good_scores: Scores of the gate images ``(n,)``.
        synthetic_scores: Scores of synthetic defects pasted on gate images ``(m,)``; the defects are the same for both
            detectors.
        threshold: The detector's own threshold; None without calibration.
    """

    good_scores: npt.NDArray[np.floating]
    synthetic_scores: npt.NDArray[np.floating]
    threshold: float | None

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Return the labels of `scores`."""
        return np.arange(len(self.good_scores) + len(self.synthetic_scores)) >= len(self.good_scores)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Return the scores of the good images, followed by those of the synthetic defects."""
        return np.concatenate([self.good_scores, self.synthetic_scores]).astype(np.float64)

    @property
    def false_alarms(self) -> int | None:
        """Count the gate images that the detector calls defective; None without a threshold."""
        return None if self.threshold is None else int((np.asarray(self.good_scores) > self.threshold).sum())


def decide_labelled(
    reference_scores: npt.ArrayLike, challenger_scores: npt.ArrayLike, labels: npt.ArrayLike, config: GateConfig
) -> GateDecision:
    """Compare two detectors on the same labelled test images by the rule of this module.

    Args:
        reference_scores: Scores of the best champion so far ``(n,)``.
        challenger_scores: Scores of the new detector for the same images ``(n,)``.
        labels: ``(n,)``, True = defective.
        config: Margin, confidence of the two-sided interval, number of resamples.

    Raises:
        DataError: If a score is NaN, a class is missing or lengths differ.
    """
    defective = np.asarray(labels, dtype=bool)
    found = paired_bootstrap(
        reference_scores, challenger_scores, defective, confidence=config.confidence, samples=config.bootstrap
    )
    auroc = image_auroc(challenger_scores, defective)
    counts = (int((~defective).sum()), int(defective.sum()))
    evidence: Evidence = {
        "reference_auroc": image_auroc(reference_scores, defective), "challenger_auroc": auroc,
        "difference": found.difference, "difference_low": found.low, "difference_high": found.high,
        "p_value": found.p_value, "margin": config.margin, "confidence": config.confidence,
        "good_images": counts[0], "defective_images": counts[1],
    }  # fmt: skip
    seen = _describe(evidence)
    if auroc <= 0.5:
        return GateDecision("kept_worse", f"The challenger separates no better than chance. {seen}", evidence)
    if min(counts) < MIN_IMAGES:
        missing = f"{counts[0]} good and {counts[1]} defective images are too few to compare detectors"
        need = f"Needs at least {MIN_IMAGES} of each."
        evidence["images_needed"] = 2 * MIN_IMAGES
        return GateDecision("kept_insufficient", f"{missing}. {need} {seen}", evidence)
    if found.low >= -config.margin:
        shown = _shown_by_perfection(evidence, counts, config)
        return GateDecision("promoted", f"{shown} {seen}", evidence)
    if found.difference < -config.margin and found.high < 0:
        return GateDecision("kept_worse", f"More than the margin of {config.margin:g} is lost. {seen}", evidence)
    needed = _images_needed(sum(counts), found, config.margin)
    evidence["images_needed"] = needed
    reason = f"The images cannot tell whether more than the margin of {config.margin:g} is lost."
    return GateDecision("kept_insufficient", f"{reason} {_wish(needed, counts)} {seen}", evidence)


def decide_good_only(
    reference: GoodOnlyEvidence, challenger: GoodOnlyEvidence, config: GateConfig, alpha: float | None
) -> GateDecision:
    """Compare two detectors of a line that has good images only.

    First the challenger's false alarms on gate images are judged: it is worse if the exact (Clopper–Pearson) interval
    of their rate is above ``alpha``, that is, if the promise of its threshold is refuted. Then the rule of this module
    is applied to gate images and synthetic defects.

    Args:
        reference: Results of the best champion so far.
        challenger: Results of the new detector for the same images.
        config: As in `decide_labelled`.
        alpha: Promised false-alarm rate; None without calibration: false alarms are not judged then.

    Raises:
        DataError: If the two did not see the same number of images, or a score is NaN.
    """
    sizes = [(len(e.good_scores), len(e.synthetic_scores)) for e in (reference, challenger)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"Both detectors must score the same images, got {sizes[0]} (good, synthetic) of the reference and "
            f"{sizes[1]} of the challenger. Score both on the current gate images."
        )
    refuted, alarms, evidence = _false_alarms(challenger, config, alpha)
    if reference.false_alarms is not None:
        evidence["reference_false_alarms"] = reference.false_alarms
    compared = decide_labelled(reference.scores, challenger.scores, challenger.labels, config)
    evidence = {**compared.evidence, **evidence, "defects": "synthetic"}
    if refuted:
        return GateDecision("kept_worse", f"{alarms} {compared.reason}", evidence)
    return GateDecision(compared.outcome, f"{compared.reason} Defects are synthetic. {alarms}".strip(), evidence)


def decide_first(scores: npt.ArrayLike, labels: npt.ArrayLike, config: GateConfig) -> GateDecision:
    """Decide on a line's first detector: it is promoted if the interval of its AUROC is above 0.5.

    Args:
        scores: Scores of the labelled test images, or of gate images and synthetic defects (`GoodOnlyEvidence`).
        labels: ``(n,)``, True = defective.
        config: Confidence of the two-sided interval, number of resamples.

    Raises:
        DataError: If a score is NaN, a class is missing or lengths differ.
    """
    defective = np.asarray(labels, dtype=bool)
    auroc = image_auroc(scores, defective)
    interval = bootstrap_interval(scores, defective, confidence=config.confidence, samples=config.bootstrap)
    counts = (int((~defective).sum()), int(defective.sum()))
    evidence: Evidence = {
        "challenger_auroc": auroc, "auroc_low": interval.low, "auroc_high": interval.high,
        "confidence": config.confidence, "good_images": counts[0], "defective_images": counts[1],
    }  # fmt: skip
    seen = (
        f"AUROC {auroc:.4f} [{interval.low:.4f}, {interval.high:.4f}] on {counts[0]} good and {counts[1]} defective "
        "images."
    )
    if interval.low > 0.5:
        return GateDecision(
            "promoted", f"The first detector of the line separates better than chance. {seen}", evidence
        )
    if auroc <= 0.5:
        return GateDecision("kept_worse", f"The detector separates no better than chance. {seen}", evidence)
    needed = _grown(sum(counts), (auroc - interval.low) / (auroc - 0.5))
    evidence["images_needed"] = needed
    reason = "The images cannot tell whether the detector separates better than chance."
    return GateDecision("kept_insufficient", f"{reason} {_wish(needed, counts)} {seen}", evidence)


def _false_alarms(challenger: GoodOnlyEvidence, config: GateConfig, alpha: float | None) -> tuple[bool, str, Evidence]:
    """Compare the challenger's false alarms with the promised rate.

    Returns:
        True if the promise is refuted, a sentence that says so, and the numbers.
    """
    alarms, n = challenger.false_alarms, len(challenger.good_scores)
    if alarms is None or alpha is None:
        return False, "", {}
    rate: Interval = clopper_pearson(alarms, n, confidence=config.confidence)
    refuted = rate.low > alpha
    evidence: Evidence = {
        "false_alarms": alarms, "false_alarm_low": rate.low, "false_alarm_high": rate.high,
        "alpha": alpha, "gate_images": n,
    }  # fmt: skip
    verdict = "above" if refuted else "compatible with"
    sentence = (
        f"{alarms} false alarms on {n} good gate images: rate between {rate.low:.3f} and {rate.high:.3f}, "
        f"{verdict} the promised {alpha:g}."
    )
    return refuted, sentence, evidence


def _describe(evidence: Evidence) -> str:
    return (
        f"AUROC {evidence['challenger_auroc']:.4f} against {evidence['reference_auroc']:.4f} of the best champion: "
        f"difference {evidence['difference']:+.4f} [{evidence['difference_low']:+.4f}, "
        f"{evidence['difference_high']:+.4f}] on {evidence['good_images']} good and "
        f"{evidence['defective_images']} defective images."
    )


def _shown_by_perfection(evidence: Evidence, counts: tuple[int, int], config: GateConfig) -> str:
    """Say what a promotion is based on; if both detectors are perfect, add what the images show to the evidence.

    Two perfect detectors differ by 0 in every resample, however much they differ on images that were not scored.
    """
    kept = f"No more than the margin of {config.margin:g} is lost."
    if not evidence["reference_auroc"] == evidence["challenger_auroc"] == 1.0:
        return kept
    limit = newcombe_limit(*counts, confidence=config.confidence)
    evidence["auroc_low"] = limit
    both = f"Both separate all {counts[0]} good and {counts[1]} defective images perfectly"
    if 1.0 - limit <= config.margin:
        return f"{both}. {kept}"
    return (
        f"{both}: nothing speaks against the challenger, but so few images show of either only an AUROC of at least "
        f"{limit:.4f} and cannot measure a margin of {config.margin:g}."
    )


def _images_needed(images: int, found: PairedDifference, margin: float) -> int:
    """Estimate the images needed for a decision; the interval shrinks with the square root of their number."""
    if found.difference < -margin:
        return _grown(images, (found.high - found.difference) / -found.difference)
    room = found.difference + margin
    return _IMPRACTICAL if room <= 0 else _grown(images, (found.difference - found.low) / room)


def _grown(images: int, narrower: float) -> int:
    return min(_IMPRACTICAL, max(images + 1, math.ceil(images * narrower**2)))


def _wish(needed: int, counts: tuple[int, int]) -> str:
    if needed >= _IMPRACTICAL:
        return "No practical number of images would decide: the difference sits at the limit."
    share = needed / sum(counts)
    return (
        f"About {math.ceil(share * counts[0])} good and {math.ceil(share * counts[1])} defective images would decide "
        f"if the difference stays as it is: {needed - sum(counts)} more than now."
    )
