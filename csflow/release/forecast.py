"""Forecast how long a whole run of a line takes on this machine, and what an image costs once it is served."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csflow.config import LineConfig
from csflow.errors import CsflowError
from csflow.runs.estimate import Estimate, estimate
from csflow.runs.services import Services
from csflow.runs.trials import apart, trial_detector
from csflow.system.cores import busy_elsewhere

if TYPE_CHECKING:
    from PIL import Image

    from csflow.data.manifest import Manifest
    from csflow.detector.detector import Detector

STEPS = 8
"""Processes that a run starts: one for each step, and one for the extraction."""

JUDGED = (4, 8)
"""Numbers of test images that the report is tried with."""

TIMED = 5
"""Number of images that the served form is timed with."""

RIVALS = 2
"""Largest number of versions that a challenger is compared with: the champion and the best former one."""


@dataclass(frozen=True)
class Forecast:
    """What a run of a line takes.

    Attributes:
        computing: Extraction and training.
        checking_seconds: Seconds of the checkout and the data gate, as they took just now.
        evaluation_seconds: Seconds of the step ``evaluate``: threshold, test images, graph, report.
        promotion_seconds: Seconds of the step ``promote``: gate, endpoint, comparison with the champion.
        starting_seconds: Seconds in which the processes of all steps start.
        served_ms: Milliseconds in which the served form judges a decoded image.
        busy: Cores that other processes kept busy before the trials; None if the system does not say.
    """

    computing: Estimate
    checking_seconds: float
    evaluation_seconds: float
    promotion_seconds: float
    starting_seconds: float
    served_ms: float
    busy: float | None

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole run."""
        computing = self.computing.extraction_seconds + self.computing.training_seconds
        judging = self.evaluation_seconds + self.promotion_seconds
        return self.checking_seconds + computing + judging + self.starting_seconds


@dataclass(frozen=True)
class JudgingTrial:
    """What the steps after training took with a few images.

    Attributes:
        saving_seconds: Seconds to write the detector directory, and to import what that needs.
        report_seconds: Seconds of a report whose images are read already.
        image_seconds: Seconds to measure one test image for the report.
        pasted_seconds: Seconds to paste a defect on a gate image and to judge it; 0 with labelled defects.
        gate_seconds: Seconds of the statistics of the gate.
        served_ms: Milliseconds an image in the served form.
    """

    saving_seconds: float
    report_seconds: float
    image_seconds: float
    pasted_seconds: float
    gate_seconds: float
    served_ms: float


def forecast(services: Services, line: LineConfig, manifest: Manifest, *, checking_seconds: float) -> Forecast:
    """Try every part of a run with a few of the line's images, and extrapolate to all.

    Args:
        services: The outside systems; the registry says how many versions a new one will be compared with.
        line: The line.
        manifest: Its images.
        checking_seconds: Seconds that checkout and data gate took.

    Raises:
        ConfigError: If the configuration cannot work.
        DataError: If there is no image to fit, or an image is damaged.
    """
    from csflow.runs.stored_features import feature_tier

    busy = busy_elsewhere()
    computing = estimate(line, manifest, services.workspace.features, feature_tier(services))
    trial = apart(try_judging, line, manifest)
    rivals = _rivals(services, line.line)
    test, gate = manifest.rows(role="test"), manifest.rows(role="gate")
    labelled = is_labelled(manifest)
    held_out = len(manifest.rows(role="calibrate"))
    score, report = computing.score_seconds, trial.report_seconds
    judged = score * len(test) if labelled else (score + trial.pasted_seconds) * len(gate)
    endpoint = 2 * computing.start_seconds  # a server's imports take longer than a step's
    return Forecast(
        computing=computing,
        checking_seconds=checking_seconds,
        evaluation_seconds=trial.saving_seconds
        + score * (held_out + len(test))
        + trial.image_seconds * len(test)
        + report,
        promotion_seconds=judged * (1 + rivals) + trial.gate_seconds + (report if rivals else 0.0) + endpoint,
        starting_seconds=STEPS * computing.start_seconds,
        served_ms=trial.served_ms,
        busy=busy,
    )


def is_labelled(manifest: Manifest) -> bool:
    """Tell if the gate judges by labelled test images; otherwise it pastes defects on gate images."""
    return set(manifest.rows(role="test").frame["label"]) == {"good", "defective"}


def try_judging(line: LineConfig, manifest: Manifest) -> JudgingTrial:
    """Save a detector that has learnt nothing, time its served form, and judge a few images with it."""
    began = time.perf_counter()
    detector = trial_detector(line)
    fitted = time.perf_counter()
    files = (manifest.rows(role="test") if len(manifest.rows(role="test")) else manifest).files[:TIMED]
    pictures = [detector.read(file) for file in files]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector.save(folder / "detector", examples=pictures[:3])
        saved = time.perf_counter() - fitted
        served = _served_ms(folder / "detector", pictures)
        few, many = (_seconds_to_report(detector, manifest, count, folder / str(count)) for count in JUDGED)
    each = max(0.0, (many - few) / (JUDGED[1] - JUDGED[0]))
    return JudgingTrial(
        saving_seconds=saved + (fitted - began) / 2,  # about half of the trial is imports, which the step needs too
        report_seconds=max(0.0, many - each * JUDGED[1]),
        image_seconds=each,
        pasted_seconds=0.0 if is_labelled(manifest) else _seconds_to_paste(detector, manifest),
        gate_seconds=_seconds_of_the_gate(line, manifest),
        served_ms=served,
    )


def _served_ms(directory: Path, pictures: list[Image.Image]) -> float:
    from csflow.detector.engine import Engine

    engine = Engine.load(directory)
    taken = []
    for picture in (*pictures[:2], *pictures):  # the first ones allocate memory
        began = time.perf_counter()
        engine.predict([picture])
        taken.append(1000 * (time.perf_counter() - began))
    return float(np.median(taken[min(2, len(pictures)) :]))


def _seconds_to_report(detector: Detector, manifest: Manifest, count: int, folder: Path) -> float:
    """Measure a few test images and write their report; return the seconds without those of the scores."""
    from csflow.reporting.assemble import evaluate_scores
    from csflow.reporting.report import write_report
    from csflow.runs.trials import score_random

    test = manifest.rows(role="test")
    some = type(manifest)(test.frame.groupby("label").head(count // 2).reset_index(drop=True), manifest.root)
    scores, maps = score_random(detector, len(some))
    began = time.perf_counter()
    write_report(
        folder, evaluate_scores(some, scores, maps, detector.calibration, bit_depth=detector.line.features.bit_depth)
    )
    return time.perf_counter() - began


def _seconds_to_paste(detector: Detector, manifest: Manifest) -> float:
    from csflow.synthetic.paste import paste_defects

    files = manifest.rows(role="gate").files[:TIMED]
    began = time.perf_counter()
    pasted, _ = paste_defects([detector.read(file) for file in files], 0)
    detector.predict(pasted)
    return (time.perf_counter() - began) / max(1, len(files))


def _seconds_of_the_gate(line: LineConfig, manifest: Manifest) -> float:
    """Time the gate's statistics, with made-up scores of as many images as it will judge."""
    from csflow.release.gate import decide_labelled

    test, gate = manifest.rows(role="test"), manifest.rows(role="gate")
    labels = (test.frame["label"] == "defective").to_numpy() if is_labelled(manifest) else np.arange(2 * len(gate)) % 2
    if len(labels) < 2:
        return 0.0
    ours, theirs = np.random.default_rng(0).random((2, len(labels)))
    began = time.perf_counter()
    decide_labelled(theirs, ours, labels, line.gate)
    return time.perf_counter() - began


def _rivals(services: Services, line: str) -> int:
    """Count the versions that a new one will be compared with; none if the registry cannot be read."""
    try:
        versions = services.registry.versions(line)
    except CsflowError:
        return 0
    return min(RIVALS, sum(version.is_champion or version.decision == "promoted" for version in versions))
