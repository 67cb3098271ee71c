"""Compare a challenger with the best champion so far on the same current images, and let the gate decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from csflow.config import LineConfig
from csflow.errors import LostFilesError
from csflow.release.publication import lay_down
from csflow.runs.services import Services
from csflow.system.progress import say

if TYPE_CHECKING:
    from PIL import Image

    from csflow.adapters.mlflow.versions import Version
    from csflow.data.manifest import Manifest
    from csflow.detector.detector import Detector
    from csflow.release.gate import GateDecision, GoodOnlyEvidence
    from csflow.reporting.comparison import PixelPair

Scores: TypeAlias = "npt.NDArray[np.floating]"
Scorer: TypeAlias = "Callable[[Detector, Manifest], tuple[Scores, npt.NDArray[np.floating]]]"
"""A function that returns the scores ``(N,)`` and maps ``(N, h, w)`` of a manifest's images."""

DEFECT_SEED = 0
"""Seed of the synthetic defects: the same for every detector and every night."""


class Contender(NamedTuple):
    """A version's number and its detector."""

    version: int
    detector: Detector


def decide(
    services: Services,
    line: LineConfig,
    version: int,
    manifest: Manifest,
    *,
    score: Scorer | None = None,
    comparison_out: Path | None = None,
) -> GateDecision:
    """Compare a version with the best champion so far on the line's current images.

    A line with good and defective test images is judged by these. A line without defective ones is judged by its
    *gate* images, which no version was ever fitted to, and by synthetic defects pasted on them.

    Args:
        services: The outside systems.
        line: The line, with the settings of its gate and calibration.
        version: The challenger.
        manifest: The line's current images.
        score: Scores images of the manifest; by default from the feature store.
        comparison_out: Folder for the report that compares both image by image; not written without a champion.

    Returns:
        The gate's decision. Without a champion, it says if the version is good enough to be the first one.

    Raises:
        RegistryError: If there is no such version, or a version's files are not those registered.
        DataError: If an image cannot be read.
    """
    from csflow.release import gate

    score = score or _stored_scorer(services)
    challenger, references = _contenders(services, line.line, version)
    test = manifest.rows(role="test")
    if set(test.frame["label"]) == {"good", "defective"}:
        return _decide_labelled(line, challenger, references, test, score, comparison_out)
    good = manifest.rows(role="gate")
    if not len(good):
        reason = (
            "The line has neither defective test images nor gate images to judge by. Add either, or raise roles.gate."
        )
        return gate.GateDecision("kept_insufficient", reason, {"gate_images": 0})
    return _decide_good_only(line, challenger, references, good, score, comparison_out)


def _decide_labelled(
    line: LineConfig,
    challenger: Contender,
    references: list[Contender],
    test: Manifest,
    score: Scorer,
    comparison_out: Path | None,
) -> GateDecision:
    from csflow.data.images import read_image
    from csflow.release import gate
    from csflow.release.floor import Detections, hold_to_floor

    labels = (test.frame["label"] == "defective").to_numpy()
    scores, maps = score(challenger.detector, test)
    found = Detections.at(challenger.detector.calibration.threshold, scores, labels)
    if not references:
        return hold_to_floor(gate.decide_first(scores, labels, line.gate), line.gate, found)
    rivals = [score(reference.detector, test) for reference in references]
    best = int(np.argmax([_auroc(rival, labels) for rival, _ in rivals]))
    rival, rival_maps = rivals[best]
    decision = gate.decide_labelled(rival, scores, labels, line.gate)
    known = Detections.at(references[best].detector.calibration.threshold, rival, labels)
    decision = hold_to_floor(decision, line.gate, found, known)
    if comparison_out is not None:
        names = list(zip(test.frame["path"], test.frame["defect"], strict=True))
        images = Shown(line.line, names, lambda index: read_image(test.files[index], line.features.bit_depth))
        pixels = _pixels(test, rival_maps, maps)
        compare(comparison_out, images, (references[best], rival), (challenger, scores), decision.reason, pixels)
    return decision


def _pixels(
    test: Manifest, champion: npt.NDArray[np.floating], challenger: npt.NDArray[np.floating]
) -> PixelPair | None:
    """Collect the pixels of both detectors' maps; None without masks."""
    from csflow.metrics.evaluation import counted_pixels
    from csflow.reporting.comparison import PixelPair

    counted = counted_pixels(test, champion, challenger)
    return PixelPair(*counted) if counted else None


def _decide_good_only(
    line: LineConfig,
    challenger: Contender,
    references: list[Contender],
    good: Manifest,
    score: Scorer,
    comparison_out: Path | None,
) -> GateDecision:
    from csflow.release import gate
    from csflow.release.floor import Detections, hold_to_floor

    defective = _pasted(line, good)
    evidence = _good_only(challenger.detector, good, defective, score)
    found = Detections.at(evidence.threshold, evidence.scores, evidence.labels, synthetic=True)
    if not references:
        decision = gate.decide_first(evidence.scores, evidence.labels, line.gate)
        return hold_to_floor(decision, line.gate, found)
    known = [_good_only(reference.detector, good, defective, score) for reference in references]
    best = int(np.argmax([_auroc(each.scores, each.labels) for each in known]))
    alpha = None if line.calibration == "none" else line.calibration.alpha
    decision = gate.decide_good_only(known[best], evidence, line.gate, alpha)
    reference = Detections.at(known[best].threshold, known[best].scores, known[best].labels, synthetic=True)
    decision = hold_to_floor(decision, line.gate, found, reference)
    if comparison_out is not None:
        images = _good_and_pasted(line, good, defective)
        champion = (references[best], known[best].scores)
        compare(comparison_out, images, champion, (challenger, evidence.scores), decision.reason)
    return decision


class Shown(NamedTuple):
    """The images that two detectors were compared on.

    Attributes:
        line: Name of the product line.
        names: Path and type of defect of each image; the type is '' for a good one.
        picture: Reads the image at an index.
    """

    line: str
    names: list[tuple[str, str]]
    picture: Callable[[int], Image.Image]


def compare(
    directory: Path,
    images: Shown,
    champion: tuple[Contender, Scores],
    challenger: tuple[Contender, Scores],
    verdict: str,
    pixels: PixelPair | None = None,
) -> None:
    """Write the report that compares two detectors image by image.

    Args:
        directory: Folder of the report; see `csflow.reporting.comparison_page.write_comparison`.
        images: The images that both were scored on.
        champion: The champion, or the best one so far, with its scores.
        challenger: The new version with its scores.
        verdict: The gate's reason.
        pixels: Pixels of both detectors' maps, if there are masks.
    """
    from csflow.reporting.comparison import Comparison, judge_scores
    from csflow.reporting.comparison_page import paint_views, write_comparison

    sides = [
        judge_scores(f"version {one.version}", images.names, scores, one.detector.calibration)
        for one, scores in (champion, challenger)
    ]
    found = Comparison(images.line, sides[0], sides[1], verdict, pixels=pixels)
    chosen = found.shown()
    pictures = [images.picture(index) for index in chosen]
    before, after = (one.detector.predict(pictures) for one, _ in (champion, challenger))
    seen = {
        index: paint_views(picture, found, first.anomaly_map, second.anomaly_map)
        for index, picture, first, second in zip(chosen, pictures, before, after, strict=True)
    }
    page = write_comparison(directory, found, seen)
    say(f"promote: version {challenger[0].version} and version {champion[0].version}, image by image: {page}")


def _contenders(services: Services, line: str, version: int) -> tuple[Contender, list[Contender]]:
    """Load the challenger and the champions to compare it with: the present one and the best former one.

    If it were compared with the present one alone, quality could decline by up to the margin every night.
    """
    from csflow.detector.detector import Detector

    challenger = services.registry.find_version(line, version)
    others = [v for v in services.registry.versions(line) if v.version != version]
    folders = {v.version: lay_down(services, v) for v in (challenger, *(v for v in others if v.is_champion))}
    former = [v for v in others if v.decision == "promoted" and not v.is_champion]
    if len(folders) > 1:
        folders |= _best_intact(services, sorted(former, key=_recorded_auroc, reverse=True))
        against = " and ".join(f"version {number}" for number in list(folders)[1:])
        say(f"promote: version {version} against {against}, scored on the same images")
    loaded = [Contender(number, Detector.load(folder)) for number, folder in folders.items()]
    return loaded[0], loaded[1:]


def _best_intact(services: Services, former: list[Version]) -> dict[int, Path]:
    """Lay down the first version whose files are not lost; a former champion without files hinders nobody."""
    for version in former:
        try:
            return {version.version: lay_down(services, version)}
        except LostFilesError as error:
            say(f"promote: former champion version {version.version} cannot be compared: {error}")
    return {}


def _recorded_auroc(version: Version) -> tuple[float, int]:
    """Return a key that sorts versions by the AUROC recorded when they were trained, then by number."""
    return version.number("image_auroc") or 0.0, version.version


def _auroc(scores: Scores, labels: npt.NDArray[np.bool_]) -> float:
    from csflow.metrics import image_auroc

    return image_auroc(scores, labels)


def _pasted(line: LineConfig, good: Manifest) -> list[Image.Image]:
    """Paste synthetic defects on the gate images, the same for every detector."""
    from csflow.data.images import read_image
    from csflow.synthetic.paste import paste_defects

    defective, _ = paste_defects([read_image(file, line.features.bit_depth) for file in good.files], DEFECT_SEED)
    return defective


def _good_and_pasted(line: LineConfig, good: Manifest, defective: list[Image.Image]) -> Shown:
    """List the gate images, then their copies with a synthetic defect, in the order of `GoodOnlyEvidence.scores`."""
    from csflow.data.images import read_image

    names = [(path, "") for path in good.frame["path"]]
    names += [(f"{path} with a pasted defect", "synthetic") for path in good.frame["path"]]
    count, depth = len(good), line.features.bit_depth
    return Shown(line.line, names, lambda i: read_image(good.files[i], depth) if i < count else defective[i - count])


def _good_only(detector: Detector, good: Manifest, defective: list[Image.Image], score: Scorer) -> GoodOnlyEvidence:
    from csflow.release.gate import GoodOnlyEvidence

    return GoodOnlyEvidence(
        good_scores=score(detector, good)[0],
        synthetic_scores=np.array([prediction.score for prediction in detector.predict(defective)]),
        threshold=detector.calibration.threshold,
    )


def _stored_scorer(services: Services) -> Scorer:
    """Return a scorer that uses the feature store, so that versions with the same backbone share all features."""
    from csflow.runs.stored_features import feature_store

    store = feature_store(services)

    def score(detector: Detector, images: Manifest) -> tuple[Scores, npt.NDArray[np.floating]]:
        cached = store.extract(images, detector.line.features, detector.backbone)
        return detector.score_features(cached.open(list(images.frame["sha256"])))

    return score
