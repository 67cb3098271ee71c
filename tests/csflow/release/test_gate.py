"""The gate's rule, its reasons, and many nights of it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from csflow.config import GateConfig
from csflow.errors import DataError
from csflow.metrics import image_auroc, newcombe_limit
from csflow.release.gate import (
    MIN_IMAGES,
    GateDecision,
    GoodOnlyEvidence,
    decide_first,
    decide_good_only,
    decide_labelled,
)

QUICK = GateConfig(bootstrap=300)


def scored(quality: float, images: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(2 * images) >= images
    return np.random.default_rng(seed).normal(size=2 * images) + quality * labels, labels


def test_an_equally_good_challenger_is_promoted_whatever_its_scale() -> None:
    scores, labels = scored(2.0)
    decision = decide_labelled(scores, np.exp(scores), labels, GateConfig(margin=0.0))
    assert decision.outcome == "promoted"
    assert decision.evidence["difference"] == 0.0


def test_a_better_challenger_is_promoted() -> None:
    scores, labels = scored(1.0)
    decision = decide_labelled(scores, scores + labels, labels, QUICK)
    assert decision.outcome == "promoted"
    assert decision.evidence["challenger_auroc"] == image_auroc(scores + labels, labels)


def test_a_clearly_worse_challenger_is_kept_out() -> None:
    scores, labels = scored(2.0)
    decision = decide_labelled(scores, scores - labels, labels, QUICK)
    assert decision.outcome == "kept_worse"
    assert "margin of 0.01 is lost" in decision.reason


def test_a_loss_within_the_margin_is_promoted_even_if_it_is_certain() -> None:
    scores, labels = scored(2.0)
    decision = decide_labelled(scores, scores - 0.05 * labels, labels, GateConfig(margin=0.05))
    assert decision.evidence["difference_high"] < 0  # type: ignore[operator]
    assert decision.outcome == "promoted"


def test_a_challenger_worse_than_chance_is_never_promoted() -> None:
    scores, labels = scored(-0.5)
    decision = decide_labelled(scores - labels, scores, labels, QUICK)
    assert decision.evidence["difference"] > 0  # type: ignore[operator]
    assert decision.outcome == "kept_worse"
    assert "chance" in decision.reason


def noisy_pair(images: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels = scored(1.5, images, seed)
    noise = np.random.default_rng(seed + 1).normal(scale=0.5, size=(2, labels.size))
    return scores + noise[0], scores + noise[1], labels


def test_too_little_evidence_says_how_many_images_would_decide() -> None:
    reference, challenger, labels = noisy_pair(20)
    decision = decide_labelled(reference, challenger, labels, QUICK)
    assert decision.outcome == "kept_insufficient"
    needed = decision.evidence["images_needed"]
    assert isinstance(needed, int)
    assert needed > labels.size
    assert re.search(rf"About \d+ good and \d+ defective .* {needed - labels.size} more", decision.reason)


def test_the_number_of_images_asked_for_does_decide() -> None:
    """The same population with as many images as asked for, the difference held fixed."""
    rng = np.random.default_rng(5)
    labels = np.tile([False, True], 40)
    reference = rng.normal(size=80) + 1.5 * labels
    challenger = reference + rng.normal(scale=0.6, size=80)
    first = decide_labelled(reference, challenger, labels, QUICK)
    assert first.outcome == "kept_insufficient"
    needed = first.evidence["images_needed"]
    assert isinstance(needed, int)
    copies = -(-int(1.3 * needed) // 80)
    more = [np.tile(values, copies) for values in (reference, challenger, labels)]
    assert decide_labelled(*more, QUICK).outcome != "kept_insufficient"
    fewer = [np.tile(values, max(1, copies // 3)) for values in (reference, challenger, labels)]
    assert decide_labelled(*fewer, QUICK).outcome == "kept_insufficient"


def test_a_difference_exactly_at_the_margin_asks_for_no_impossible_number() -> None:
    reference, challenger, labels = noisy_pair(20)
    loss = image_auroc(reference, labels) - image_auroc(challenger, labels)
    if loss < 0:
        reference, challenger, loss = challenger, reference, -loss
    decision = decide_labelled(reference, challenger, labels, GateConfig(margin=loss, bootstrap=400))
    assert decision.outcome == "kept_insufficient"
    assert "No practical number" in decision.reason


@pytest.mark.parametrize("images", [1, MIN_IMAGES - 1])
def test_agreement_on_a_handful_of_images_is_no_evidence(images: int) -> None:
    scores = np.arange(2.0 * images)
    decision = decide_labelled(scores, scores, scores >= images, QUICK)
    assert decision.outcome == "kept_insufficient"
    assert f"at least {MIN_IMAGES}" in decision.reason


def perfect_pair(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.arange(2.0 * images)
    return scores, np.exp(scores / images), scores >= images


def test_two_perfect_detectors_are_promoted_with_what_so_few_images_can_show() -> None:
    decision = decide_labelled(*perfect_pair(10), QUICK)
    assert decision.outcome == "promoted"
    assert "separate all 10 good and 10 defective images perfectly" in decision.reason
    limit = newcombe_limit(10, 10)
    assert f"at least {limit:.4f} and cannot measure a margin of 0.01" in decision.reason
    assert "No more than" not in decision.reason
    assert decision.evidence["auroc_low"] == limit < 0.9


def test_many_images_separated_perfectly_do_measure_the_margin() -> None:
    decision = decide_labelled(*perfect_pair(400), QUICK)
    assert decision.outcome == "promoted"
    assert "perfectly. No more than the margin of 0.01 is lost." in decision.reason
    assert decision.evidence["auroc_low"] > 0.99  # type: ignore[operator]


def test_one_perfect_detector_of_two_is_a_plain_comparison() -> None:
    reference, challenger, labels = perfect_pair(20)
    reference[[19, 20]] = reference[[20, 19]]
    decision = decide_labelled(reference, challenger, labels, QUICK)
    assert decision.reason.startswith("No more than the margin of 0.01 is lost.")
    assert "auroc_low" not in decision.evidence


def nights(*, against_the_best: bool) -> tuple[float, float, int]:
    """Each night's challenger is a little worse than the last champion; all are judged on the same images."""
    rng = np.random.default_rng(0)
    start, labels = scored(2.5, 150)
    champions = [start]
    for _ in range(25):
        challenger = champions[-1] - 0.03 * labels + 0.01 * rng.normal(size=labels.size)
        aurocs = [image_auroc(scores, labels) for scores in champions]
        reference = champions[int(np.argmax(aurocs))] if against_the_best else champions[-1]
        if decide_labelled(reference, challenger, labels, QUICK).outcome == "promoted":
            champions.append(challenger)
    return image_auroc(start, labels), image_auroc(champions[-1], labels), len(champions) - 1


def test_small_losses_cannot_creep_when_measured_against_the_best() -> None:
    first, last, promoted = nights(against_the_best=True)
    assert promoted >= 1
    assert last >= first - QUICK.margin
    first, last, _ = nights(against_the_best=False)
    assert last < first - 3 * QUICK.margin  # what the rule is for


def test_equal_detectors_pass_as_images_become_many_and_bad_ones_never_often() -> None:
    def outcomes(images: int, loss: float) -> list[str]:
        found = []
        for seed in range(12):
            scores, labels = scored(2.0, images, seed)
            noise = np.random.default_rng(seed + 99).normal(scale=0.1, size=labels.size)
            challenger = scores + noise - loss * labels
            found.append(decide_labelled(scores, challenger, labels, QUICK).outcome)
        return found

    assert outcomes(600, 0.0).count("promoted") >= 10
    assert outcomes(40, 0.0).count("kept_worse") <= 1
    assert outcomes(300, 0.4).count("promoted") == 0


def good_only(false_alarms: int, quality: float = 2.5, n: int = 60, seed: int = 0) -> GoodOnlyEvidence:
    rng = np.random.default_rng(seed)
    good = np.sort(rng.normal(size=n))
    threshold = (
        float((good[n - false_alarms - 1] + good[-1]) / 2) if not false_alarms else float(good[-false_alarms - 1])
    )
    return GoodOnlyEvidence(good, rng.normal(size=n) + quality, threshold)


def test_good_only_counts_false_alarms_above_the_threshold() -> None:
    evidence = good_only(3)
    assert evidence.false_alarms == 3
    assert evidence.labels.sum() == 60
    assert evidence.scores.shape == (120,)


def test_good_only_promotes_what_keeps_its_promise() -> None:
    decision = decide_good_only(good_only(2), good_only(3), QUICK, alpha=0.05)
    assert decision.outcome == "promoted"
    assert "3 false alarms on 60" in decision.reason
    assert "compatible" in decision.reason
    assert decision.evidence["defects"] == "synthetic"
    assert decision.evidence["reference_false_alarms"] == 2


def test_good_only_keeps_the_champion_when_the_promise_is_refuted() -> None:
    decision = decide_good_only(good_only(2), good_only(12), QUICK, alpha=0.05)
    assert decision.outcome == "kept_worse"
    assert decision.reason.startswith("12 false alarms")


def test_good_only_keeps_the_champion_when_synthetic_defects_are_missed() -> None:
    decision = decide_good_only(good_only(2, quality=4.0), good_only(2, quality=0.5), QUICK, alpha=0.05)
    assert decision.outcome == "kept_worse"


def test_good_only_without_calibration_judges_separation_alone() -> None:
    plain = GoodOnlyEvidence(good_only(0).good_scores, good_only(0).synthetic_scores, None)
    decision = decide_good_only(plain, plain, QUICK, alpha=None)
    assert decision.outcome == "promoted"
    assert "false alarm" not in decision.reason


def test_good_only_refuses_different_images() -> None:
    with pytest.raises(DataError, match="same images"):
        decide_good_only(good_only(2, n=60), good_only(2, n=50), QUICK, alpha=0.05)


@pytest.mark.parametrize(
    ("quality", "images", "outcome"),
    [(2.0, 50, "promoted"), (0.3, 12, "kept_insufficient"), (-1.0, 50, "kept_worse")],
)
def test_the_first_detector_must_beat_chance(quality: float, images: int, outcome: str) -> None:
    decision = decide_first(*scored(quality, images), QUICK)
    assert decision.outcome == outcome
    assert ("images_needed" in decision.evidence) == (outcome == "kept_insufficient")


def test_perfection_on_two_images_of_each_kind_does_not_beat_chance() -> None:
    assert decide_first(range(4), np.arange(4) >= 2, QUICK).outcome == "kept_insufficient"
    assert decide_first(range(10), np.arange(10) >= 5, QUICK).outcome == "promoted"


def test_evidence_is_plain_numbers_and_text() -> None:
    scores, labels = scored(2.0)
    decisions: list[GateDecision] = [
        decide_labelled(scores, scores, labels, QUICK), decide_first(scores, labels, QUICK),
        decide_good_only(good_only(2), good_only(2), QUICK, alpha=0.05),
    ]  # fmt: skip
    for decision in decisions:
        assert {type(value) for value in decision.evidence.values()} <= {int, float, str}
