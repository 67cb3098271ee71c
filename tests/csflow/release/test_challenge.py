"""Which detectors are compared, on which images, and that both see the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import Version
from csflow.config import DataConfig, GateConfig, LineConfig, RolesConfig
from csflow.data.images import read_image
from csflow.data.manifest import Manifest, build_manifest
from csflow.detector.detector import Detector
from csflow.release import challenge
from csflow.release.gate import GateDecision
from csflow.runs.context import RunContext
from csflow.runs.services import Services
from csflow.steps import promote
from csflow.system.workspace import Workspace

LOAD = Detector.load  # before any test replaces it
LINE = LineConfig(line="tiles", data=DataConfig(path="data/tiles"), gate=GateConfig(margin=0.02, bootstrap=500))


@dataclass
class Stand:
    """A detector that sees brightness plus its own noise."""

    name: str
    noise: float
    threshold: float = 1.0

    @property
    def calibration(self) -> SimpleNamespace:
        return SimpleNamespace(threshold=self.threshold)

    def predict(self, images: Sequence[Image.Image]) -> list[SimpleNamespace]:
        draw = np.random.default_rng(len(self.name))
        return [SimpleNamespace(score=float(2.0 + self.noise * draw.normal())) for _ in images]


def score(detector: Stand, images: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Good images score around 0, defective ones around 1, blurred by the detector's noise; maps tell nothing."""
    draw = np.random.default_rng(11)
    truth = (images.frame["label"] == "defective").to_numpy().astype(float)
    return truth + detector.noise * draw.normal(size=len(truth)), np.zeros((len(truth), 2, 2))


class Line:
    """Versions of a line and what detector each is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: list[Version] = []
        self.detectors: dict[str, Stand] = {}
        monkeypatch.setattr(Registry, "versions", lambda *_: self.known)
        monkeypatch.setattr(Registry, "find_version", lambda _, __, n: next(v for v in self.known if v.version == n))
        monkeypatch.setattr(challenge, "lay_down", lambda _, version: Path(str(version.version)))
        monkeypatch.setattr(Detector, "load", lambda folder: self.detectors[folder.name])

    def add(self, noise: float, *, champion: bool = False, threshold: float = 1.0, **tags: str) -> int:
        number = len(self.known) + 1
        aliases = ("champion",) if champion else ()
        self.known.append(Version("tiles", number, "run", datetime.now(UTC), aliases, tags))
        self.detectors[str(number)] = Stand(str(number), noise, threshold)
        return number


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


def images(root: Path, *, defective: int, train: int = 40, good: int = 40, masks: bool = False) -> Manifest:
    draw = np.random.default_rng(0)
    for folder, count in (("train/good", train), ("test/good", good), ("test/hole", defective)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / folder / f"{number:03}.png")
    if masks and defective:
        (root / "ground_truth/hole").mkdir(parents=True)
        mask = Image.new("L", (32, 32))
        mask.paste(255, (4, 4, 12, 12))
        for number in range(defective):
            mask.save(root / f"ground_truth/hole/{number:03}_mask.png")
    return build_manifest(root, line="tiles", roles=RolesConfig(calibrate=0.2, gate=0.4))


@pytest.fixture
def labelled(tmp_path: Path) -> Manifest:
    return images(tmp_path / "images", defective=40)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services.of(Workspace(tmp_path / "home"))


def test_the_first_version_must_separate_better_than_chance(line: Line, labelled: Manifest, services: Services) -> None:
    sharp, blind = line.add(0.2), line.add(1000.0)
    assert challenge.decide(services, LINE, sharp, labelled, score=score).outcome == "promoted"
    assert challenge.decide(services, LINE, blind, labelled, score=score).outcome != "promoted"


@pytest.mark.parametrize(("noise", "outcome"), [(0.2, "promoted"), (0.1, "promoted"), (2.0, "kept_worse")])
def test_a_challenger_is_compared_with_the_champion(
    line: Line, labelled: Manifest, services: Services, noise: float, outcome: str
) -> None:
    line.add(0.2, champion=True, decision="promoted")
    decision = challenge.decide(services, LINE, line.add(noise), labelled, score=score)
    assert decision.outcome == outcome
    assert decision.evidence["defective_images"] == 40


def test_the_reference_is_the_best_champion_so_far_on_todays_images(
    line: Line, labelled: Manifest, services: Services
) -> None:
    line.add(0.1, decision="promoted", image_auroc="0.99")
    line.add(3.0, decision="promoted", image_auroc="0.60")
    line.add(1.4, decision="promoted", champion=True, image_auroc="0.95")
    challenger = line.add(1.5)
    kept = challenge.decide(services, LINE, challenger, labelled, score=score)
    assert kept.outcome == "kept_worse"
    assert kept.evidence["reference_auroc"] > 0.98


@pytest.mark.parametrize("decision", ["rolled_back", "kept_worse", "held", ""])
def test_what_was_never_champion_or_was_rolled_back_is_no_reference(
    line: Line, labelled: Manifest, services: Services, decision: str
) -> None:
    line.add(0.1, decision=decision, image_auroc="0.99")
    line.add(1.4, decision="promoted", champion=True, image_auroc="0.80")
    assert challenge.decide(services, LINE, line.add(1.4), labelled, score=score).outcome == "promoted"


def test_both_are_scored_on_the_same_test_images(line: Line, labelled: Manifest, services: Services) -> None:
    seen: list[tuple[str, list[str]]] = []

    def watch(detector: Stand, shown: Manifest) -> tuple[np.ndarray, np.ndarray]:
        seen.append((detector.name, list(shown.frame["path"])))
        return score(detector, shown)

    line.add(0.2, champion=True)
    challenge.decide(services, LINE, line.add(0.2), labelled, score=watch)
    assert {name for name, _ in seen} == {"1", "2"}
    assert seen[0][1] == seen[1][1] == list(labelled.rows(role="test").frame["path"])


def test_a_line_without_defects_is_judged_on_gate_images_and_synthetic_defects(
    line: Line, tmp_path: Path, services: Services
) -> None:
    manifest = images(tmp_path / "good", defective=0)
    gate = len(manifest.rows(role="gate"))
    assert gate >= 10
    first = line.add(0.1)
    decision = challenge.decide(services, LINE, first, manifest, score=score)
    assert decision.outcome == "promoted"
    assert decision.evidence["good_images"] == decision.evidence["defective_images"] == gate
    line.known[0] = Version("tiles", first, "run", datetime.now(UTC), ("champion",), {"decision": "promoted"})
    equal = challenge.decide(services, LINE, line.add(0.1), manifest, score=score)
    assert equal.outcome == "promoted"
    assert (equal.evidence["defects"], equal.evidence["gate_images"]) == ("synthetic", gate)
    nervous = challenge.decide(services, LINE, line.add(0.1, threshold=-1.0), manifest, score=score)
    assert nervous.outcome == "kept_worse"
    assert nervous.evidence["false_alarms"] == gate


def test_a_line_with_nothing_to_judge_by_is_kept(line: Line, tmp_path: Path, services: Services) -> None:
    manifest = images(tmp_path / "few", defective=0, train=1)
    if len(manifest.rows(role="gate")):
        manifest = manifest.rows(split="test")
    decision = challenge.decide(services, LINE, line.add(0.1), manifest, score=score)
    assert decision.outcome == "kept_insufficient"
    assert "roles.gate" in decision.reason


@pytest.mark.slow
def test_scores_through_the_feature_store_are_the_detectors_own(
    make_detector: Callable[..., Path], tmp_path: Path, services: Services
) -> None:
    manifest = images(tmp_path / "images", defective=2, train=2, good=2)
    detector = Detector.load(make_detector("tiles"))
    scores, maps = challenge._stored_scorer(services)(detector, manifest)
    direct = detector.predict([read_image(file) for file in manifest.files])
    assert scores == pytest.approx([prediction.score for prediction in direct], rel=1e-3)  # half precision in the store
    assert len(maps) == len(direct)


@pytest.mark.slow
@pytest.mark.parametrize("defective", [12, 0])
def test_the_comparison_is_written_beside_the_decision(
    line: Line, make_detector: Callable[..., Path], tmp_path: Path, services: Services, defective: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loaded = {"1": LOAD(make_detector("tiles", seed=1)), "2": LOAD(make_detector("tiles", seed=2))}
    monkeypatch.setattr(Detector, "load", lambda folder: loaded[folder.name])
    line.add(0.0, champion=True, decision="promoted")
    manifest = images(tmp_path / "images", defective=defective, good=12, masks=True)
    out = tmp_path / "comparison"
    draw = {id(detector): np.random.default_rng(seed) for seed, detector in enumerate(loaded.values())}

    def noisy(detector: Detector, shown: Manifest) -> tuple[np.ndarray, np.ndarray]:
        return draw[id(detector)].uniform(5.0, 12.0, len(shown)), draw[id(detector)].uniform(size=(len(shown), 4, 4))

    decision = challenge.decide(services, LINE, line.add(0.0), manifest, score=noisy, comparison_out=out)
    facts = json.loads((out / "comparison.json").read_text())
    assert facts["names"] == {"champion": "version 1", "challenger": "version 2"}
    assert facts["verdict"] == decision.reason
    assert facts["metrics"]["image_auroc"]["difference"] == pytest.approx(decision.evidence["difference"])
    assert ("pixel_auroc" in json.dumps(facts)) == bool(defective), "pixels are compared where there are masks"
    kinds = {image["defect"] for image in facts["images"]["champion"]}
    assert kinds == {"", "hole" if defective else "synthetic"}
    assert list((out / "images").glob("*-challenger.png"))
    assert "comparison" in (out / "comparison.html").read_text()


def test_without_champion_there_is_nothing_to_compare(
    line: Line, labelled: Manifest, services: Services, tmp_path: Path
) -> None:
    challenge.decide(services, LINE, line.add(0.2), labelled, score=score, comparison_out=tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize("has_champion", [True, False])
def test_the_promote_step_attaches_the_comparison_to_the_run(
    services: Services, labelled: Manifest, monkeypatch: pytest.MonkeyPatch, has_champion: bool
) -> None:
    def decide(*_: object, comparison_out: Path) -> GateDecision:
        if has_champion:
            comparison_out.mkdir(parents=True)
        return GateDecision("promoted", "it is better")

    logged: list[tuple[str, Path]] = []
    monkeypatch.setattr(challenge, "decide", decide)
    monkeypatch.setattr(Registry, "set_version_tags", lambda *_: None)
    monkeypatch.setattr(Tracker, "log_artifact", lambda _, run, path: logged.append((run, path)))
    context = RunContext(LINE, "run7", "", "", "", "", "", unchanged=False, manifest_sha256="")
    assert promote._judge(services, context, 2, labelled).outcome == "promoted"
    assert logged == ([("run7", services.workspace.runs / "run7" / "comparison")] if has_champion else [])
