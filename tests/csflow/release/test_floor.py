"""A detector in service finds the share of defects that its line asks for, and the decision says so first."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csflow.config import GateConfig
from csflow.release.floor import Detections, hold_to_floor
from csflow.release.gate import GateDecision, decide_first

LABELS = np.arange(200) >= 100
PROMOTED = GateDecision("promoted", "It ranks well.", {"challenger_auroc": 0.9})
AGAINST = GateDecision("promoted", "Nothing is lost.", {"challenger_auroc": 0.9, "reference_auroc": 0.9})


def detections(found: int, defective: int = 100) -> Detections:
    return Detections(found, defective)


def test_detections_are_defective_images_above_the_threshold() -> None:
    scores = np.array([9.0, 1.0, 2.0, 3.0, 3.0])
    labels = np.array([False, True, True, True, True])
    assert Detections.at(2.0, scores, labels) == Detections(2, 4)
    assert Detections.at(2.0, scores, labels, synthetic=True) == Detections(2, 4, "synthetic defects")
    assert Detections.at(None, scores, labels) is None
    assert Detections.at(2.0, scores[:1], labels[:1]) is None


def test_a_first_detector_that_ranks_better_than_chance_but_finds_few_is_kept() -> None:
    """The case of the trials: 8 of 100 defects found, AUROC clearly above chance."""
    scores = np.random.default_rng(0).normal(size=200) + 1.0 * LABELS
    first = decide_first(scores, LABELS, GateConfig())
    assert first.outcome == "promoted"
    threshold = float(np.sort(scores[LABELS])[-9])
    decision = hold_to_floor(first, GateConfig(), Detections.at(threshold, scores, LABELS))
    assert decision.outcome == "kept_worse"
    assert decision.reason.startswith(
        "Finds 8 of 100 defective images at its threshold (8 %, 95 % interval 4 to 15 %)."
    )
    assert "The line asks for 50 % (gate.min_recall). Raise calibration.alpha" in decision.reason
    assert first.reason in decision.reason
    exact = stats.binomtest(8, 100).proportion_ci(0.95, method="exact")
    assert decision.evidence["recall_low"] == pytest.approx(exact.low)
    assert decision.evidence["recall_high"] == pytest.approx(exact.high)


@pytest.mark.parametrize(("found", "floor", "outcome"), [(50, 0.5, "promoted"), (49, 0.5, "kept_worse"),
                                                         (0, 0.0, "promoted"), (89, 0.9, "kept_worse")])  # fmt: skip
def test_the_floor_is_the_lines_own(found: int, floor: float, outcome: str) -> None:
    decision = hold_to_floor(PROMOTED, GateConfig(min_recall=floor), detections(found))
    assert decision.outcome == outcome
    assert decision.evidence["min_recall"] == floor
    assert decision.evidence["defects_found"] == found


def test_a_challenger_below_the_floor_may_replace_a_champion_that_finds_no_more() -> None:
    decision = hold_to_floor(AGAINST, GateConfig(), detections(30), detections(30))
    assert decision.outcome == "promoted"
    assert "; the best champion so far finds 30. Warning: that is below the 50 %" in decision.reason
    assert decision.evidence["reference_defects_found"] == 30
    worse = hold_to_floor(AGAINST, GateConfig(), detections(30), detections(31))
    assert worse.outcome == "kept_worse"


def test_the_auroc_of_the_line_is_a_floor_too() -> None:
    config = GateConfig(min_auroc=0.95)
    decision = hold_to_floor(PROMOTED, config, detections(100))
    assert decision.outcome == "kept_worse"
    assert "asks for an AUROC of 0.95 (gate.min_auroc), found 0.9000" in decision.reason
    assert hold_to_floor(PROMOTED, config, None).outcome == "kept_worse", "also without a threshold"
    assert hold_to_floor(AGAINST, config, None).outcome == "promoted", "the champion is no better"


def test_other_decisions_stand_and_lead_with_the_defects_found() -> None:
    kept = GateDecision("kept_insufficient", "Too few images.", {"challenger_auroc": 0.9})
    decision = hold_to_floor(kept, GateConfig(), detections(1), detections(2))
    assert decision.outcome == "kept_insufficient"
    assert decision.reason.startswith("Finds 1 of 100 defective images")
    assert decision.reason.endswith("Too few images.")
    assert hold_to_floor(kept, GateConfig(), None).reason == kept.reason
