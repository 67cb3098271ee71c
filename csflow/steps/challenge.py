"""A challenger against the best champion so far: both scored on the same current images, then the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from csflow.config import LineConfig
from csflow.progress import say
from csflow.steps.rollout import publish
from csflow.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.registry import Version
    from csflow.detector import Detector
    from csflow.gate import GateDecision, GoodOnlyEvidence
    from csflow.manifest import Manifest

Scores: TypeAlias = "npt.NDArray[np.floating]"
Scorer: TypeAlias = "Callable[[Detector, Manifest], Scores]"

DEFECT_SEED = 0
"""Of the synthetic defects: the same for every detector and every night."""


def decide(
    workspace: Workspace,
    line: LineConfig,
    version: int,
    manifest: Manifest,
    *,
    score: Scorer | None = None,
) -> GateDecision:
    """Compare a version with the best champion so far on the line's current images.

    With good and defective test images these are what is scored. A line without defective ones is judged by
    its *gate* images, which no version was ever fitted to, and by synthetic defects pasted on them.

    Args:
        workspace: Where things are.
        line: The line; its gate and calibration say what counts.
        version: The challenger.
        manifest: The line's current images.
        score: How to score images of the manifest; by default through the feature store.

    Returns:
        The gate's decision. Without a champion: whether the version is fit to be the first.

    Raises:
        RegistryError: If there is no such version, or a version's files are not those registered.
        DataError: If an image cannot be read.
    """
    from csflow import gate

    score = score or _stored_scorer(workspace)
    challenger, references = _contenders(workspace, line.line, version)
    test = manifest.rows(role="test")
    if set(test.frame["label"]) == {"good", "defective"}:
        labels = (test.frame["label"] == "defective").to_numpy()
        scores = score(challenger, test)
        if not references:
            return gate.decide_first(scores, labels, line.gate)
        rivals = [score(reference, test) for reference in references]
        return gate.decide_labelled(_best(rivals, labels), scores, labels, line.gate)
    good = manifest.rows(role="gate")
    if not len(good):
        reason = (
            "The line has neither defective test images nor gate images to judge by. Add either, or raise roles.gate."
        )
        return gate.GateDecision("kept_insufficient", reason, {"gate_images": 0})
    evidence = _good_only(challenger, good, score)
    if not references:
        return gate.decide_first(evidence.scores, evidence.labels, line.gate)
    known = [_good_only(reference, good, score) for reference in references]
    best = max(known, key=lambda each: _auroc(each.scores, each.labels))
    alpha = None if line.calibration == "none" else line.calibration.alpha
    return gate.decide_good_only(best, evidence, line.gate, alpha)


def _contenders(workspace: Workspace, line: str, version: int) -> tuple[Detector, list[Detector]]:
    """The challenger, and the champions to measure it against: the present one and the best there was.

    Measured against the present one alone, the margin could be lost a little every night.
    """
    from csflow.adapters import registry
    from csflow.detector import Detector

    challenger = registry.find_version(workspace, line, version)
    others = [v for v in registry.versions(workspace, line) if v.version != version]
    chosen = [v for v in others if v.is_champion]
    former = [v for v in others if v.decision == "promoted" and not v.is_champion]
    if chosen and former:
        chosen.append(max(former, key=_recorded_auroc))
    if chosen:
        against = " and ".join(f"version {v.version}" for v in chosen)
        say(f"promote: version {version} against {against}, scored on the same images")
    detectors = [Detector.load(publish(workspace, v)) for v in (challenger, *chosen)]
    return detectors[0], detectors[1:]


def _recorded_auroc(version: Version) -> tuple[float, int]:
    """What a version measured in its own time; among equals the newer one."""
    return version.number("image_auroc") or 0.0, version.version


def _best(rivals: list[Scores], labels: npt.NDArray[np.bool_]) -> Scores:
    """Scores of the champion that is best on today's images."""
    return max(rivals, key=lambda scores: _auroc(scores, labels))


def _auroc(scores: Scores, labels: npt.NDArray[np.bool_]) -> float:
    from csflow.metrics import image_auroc

    return image_auroc(scores, labels)


def _good_only(detector: Detector, good: Manifest, score: Scorer) -> GoodOnlyEvidence:
    from csflow.gate import GoodOnlyEvidence
    from csflow.images import read_image
    from csflow.synthetic.paste import paste_defects

    defective, _ = paste_defects([read_image(file) for file in good.files], DEFECT_SEED)
    return GoodOnlyEvidence(
        good_scores=score(detector, good),
        synthetic_scores=np.array([prediction.score for prediction in detector.predict(defective)]),
        threshold=detector.calibration.threshold,
    )


def _stored_scorer(workspace: Workspace) -> Scorer:
    """Score through the feature store: versions on the same backbone share every feature."""
    from csflow.cache import FeatureStore

    store = FeatureStore(workspace.features)

    def score(detector: Detector, images: Manifest) -> Scores:
        cached = store.extract(images, detector.line.features, detector.backbone)
        scores, _ = detector.score_features(cached.open(list(images.frame["sha256"])))
        return scores

    return score
