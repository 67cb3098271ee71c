"""Hold a new detector to what the line asks of any detector in service: the share of defects it finds at its threshold.

The comparison with the champion (:mod:`csflow.release.gate`) is about ranking. A detector can rank better than
chance, and no worse than the champion, and still call nearly every defective part good: its threshold may be high.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csflow.config import GateConfig
from csflow.metrics import Interval, clopper_pearson
from csflow.release.gate import Evidence, GateDecision


@dataclass(frozen=True)
class Detections:
    """How many of the defective images a detector calls defective.

    Attributes:
        found: Number of those above its own threshold.
        defective: Number of all of them.
        kind: What they are, in words.
    """

    found: int
    defective: int
    kind: str = "defective images"

    @classmethod
    def at(
        cls,
        threshold: float | None,
        scores: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        synthetic: bool = False,
    ) -> Detections | None:
        """Count detections; None without a threshold or without defective images.

        Args:
            threshold: The detector's own; a score above it is called defective.
            scores: ``(n,)``.
            labels: ``(n,)``, True = defective.
            synthetic: True if the defects are drawn ones.
        """
        defective = np.asarray(scores)[np.asarray(labels, dtype=bool)]
        if threshold is None or not len(defective):
            return None
        kind = "synthetic defects" if synthetic else "defective images"
        return cls(int((defective > threshold).sum()), len(defective), kind)

    @property
    def share(self) -> float:
        """Return the share of defective images that are found."""
        return self.found / self.defective


def hold_to_floor(
    decision: GateDecision, config: GateConfig, challenger: Detections | None, reference: Detections | None = None
) -> GateDecision:
    """Put the defects found first, and keep a detector that is below the line's floor.

    A challenger below the floor may still replace a champion that is no better: the line gains by it.

    Args:
        decision: The gate's decision by ranking.
        config: The floor: ``min_recall`` and ``min_auroc``.
        challenger: Detections of the new detector; None without a threshold: they are not judged then.
        reference: Detections of the best champion so far; None for the line's first detector.
    """
    evidence: Evidence = {**decision.evidence, "min_auroc": config.min_auroc}
    missed = _missed_auroc(decision, config)
    lead = ""
    if challenger is not None:
        low, high = clopper_pearson(challenger.found, challenger.defective, confidence=config.confidence)
        evidence |= {
            "defects_found": challenger.found, "recall": challenger.share, "recall_low": low, "recall_high": high,
            "min_recall": config.min_recall,
        }  # fmt: skip
        lead = _lead(challenger, reference, Interval(low, high), config.confidence)
        if reference is not None:
            evidence["reference_defects_found"] = reference.found
        missed = _missed_recall(challenger, reference, config) or missed
    if decision.outcome != "promoted" or not missed:
        warning = _warning(challenger, config) if decision.outcome == "promoted" else ""
        reason = " ".join(part for part in (lead, warning, decision.reason) if part)
        return replace(decision, reason=reason, evidence=evidence)
    return GateDecision("kept_worse", " ".join(part for part in (lead, missed, decision.reason) if part), evidence)


def _lead(challenger: Detections, reference: Detections | None, interval: Interval, confidence: float) -> str:
    low, high = (100 * limit for limit in interval)
    against = "" if reference is None else f"; the best champion so far finds {reference.found}"
    return (
        f"Finds {challenger.found} of {challenger.defective} {challenger.kind} at its threshold "
        f"({100 * challenger.share:.0f} %, {100 * confidence:g} % interval {low:.0f} to {high:.0f} %){against}."
    )


def _missed_recall(challenger: Detections, reference: Detections | None, config: GateConfig) -> str:
    if challenger.share >= config.min_recall or (reference is not None and challenger.found >= reference.found):
        return ""
    return (
        f"The line asks for {100 * config.min_recall:g} % (gate.min_recall). Raise calibration.alpha to find more at "
        "the price of false alarms, or choose another detector (csflow ablate)."
    )


def _missed_auroc(decision: GateDecision, config: GateConfig) -> str:
    found = float(decision.evidence.get("challenger_auroc", 1.0))
    if found >= config.min_auroc or found >= float(decision.evidence.get("reference_auroc", 1.0)):
        return ""
    return (
        f"The line asks for an AUROC of {config.min_auroc:g} (gate.min_auroc), found {found:.4f}. Choose another "
        "detector (csflow ablate)."
    )


def _warning(challenger: Detections | None, config: GateConfig) -> str:
    if challenger is None or challenger.share >= config.min_recall:
        return ""
    return f"Warning: that is below the {100 * config.min_recall:g} % that the line asks for (gate.min_recall)."
