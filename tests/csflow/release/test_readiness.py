"""``csflow check`` and ``csflow estimate``: what would stop a run, and what a run takes, from start to promotion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from csflow.adapters import versioning
from csflow.adapters.data_quality import QualityReport
from csflow.cli.app import app
from csflow.config import load_line
from csflow.data.manifest import Manifest
from csflow.errors import CsflowError, UsageError
from csflow.release import forecast as forecasting
from csflow.release import readiness
from csflow.release.forecast import Forecast, JudgingTrial, forecast
from csflow.release.readiness import Finding, check_line
from csflow.runs.checkout import materialise
from csflow.runs.estimate import Estimate
from csflow.runs.services import Services

LINE = """line: {name}
data: {{repo: ../repo, path: bolts}}
features: {{image_size: 128}}
flow: {{hidden: 16, blocks: 1}}
training: {{epochs: 2, batch_size: 4}}
calibration: {{alpha: 0.5}}
"""
WORK = Estimate(
    images=60, fitted=30, to_extract=60, features_bytes=100, new_features_bytes=100, extraction_seconds=10.0,
    training_seconds=20.0, score_seconds=0.5, start_seconds=3.0, extraction_memory=1, training_memory=1,
    checkpoint_bytes=5, device="cpu", precision="float32",
)  # fmt: skip
JUDGING = JudgingTrial(saving_seconds=4.0, report_seconds=7.0, image_seconds=0.25, pasted_seconds=1.0, gate_seconds=2.0,
                       served_ms=40.0)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines whose images are in one data repository: 40 good ones to train on, 12 good and 12 bent ones to test."""
    root = tmp_path_factory.mktemp("project")
    versioning.create_data_repository(root / "repo")
    draw = np.random.default_rng(0)
    for name, counts in {
        "bolts": {"train/good": 40, "test/good": 12, "test/bent": 12},
        "nuts": {"train/good": 40, "test/good": 2},
    }.items():
        for folder, count in counts.items():
            target = root / "repo" / name / folder
            target.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(target / f"{index}.png")
        versioning.add_and_push(root / "repo", name, name)
    (root / "lines").mkdir()
    return root


@pytest.fixture
def lines(project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = project / "lines"
    monkeypatch.setenv("CSFLOW_LINES", str(folder))
    yield folder
    for file in folder.iterdir():
        file.unlink()


def write(lines: Path, name: str, more: str = "", data: str = "bolts") -> None:
    (lines / f"{name}.yaml").write_text(LINE.format(name=name).replace("path: bolts", f"path: {data}") + more)


def problems(findings: list[Finding]) -> list[str]:
    return [each.check for each in findings if each.problem]


def checked(*words: str) -> tuple[int, str, str]:
    """Exit status, output and message of ``csflow check``."""
    done = CliRunner().invoke(app, ["check", *words])
    known = isinstance(done.exception, CsflowError)
    return (done.exception.exit_code if known else done.exit_code), done.stdout, str(done.exception)  # type: ignore[union-attr]


def test_a_line_in_order_passes(lines: Path) -> None:
    write(lines, "bolts", "schedule: {cron: '30 3 * * 1-5', timezone: Europe/Berlin}\n")
    status, output, _ = checked("bolts", "--quick")
    assert status == 0, output
    for found in ("next 20", "64 images at", "passes", "judges by 12 good and 12 defective", "128, 64, 32 px"):
        assert found in output
    assert "problem" not in output


def test_everything_is_named_at_once(lines: Path) -> None:
    write(
        lines,
        "bolts",
        "quality: {min_train: 500, modes: [L]}\nschedule: {cron: '0 0 1 * *', timezone: Europe/Berlin}\n"
        "roles: {shots: 39}\n",
    )
    file = lines / "bolts.yaml"
    file.write_text(file.read_text().replace("image_size: 128", "image_size: 120").replace("alpha: 0.5", "alpha: 0.01"))
    write(lines, "twice", "flow: {hidden: 32}\nschedule: {cron: bad cron, timezone: Mars/X}\n")
    write(lines, "gone", data="nowhere")
    status, output, message = checked("--all", "--quick", "--json")
    assert status == 1
    found = json.loads(output)
    bolts = "\n".join(each["found"] for each in found["bolts"] if each["problem"])
    for words in ("cannot be written in UTC", "Nearest: 128", "at least 500", "shots asks for 39", "needs at least 99"):
        assert words in bolts
    twice = "\n".join(each["found"] for each in found["twice"])
    for words in ("key 'flow' is there already, in line 4", "'bad cron' has 2 fields", "'Mars/X' is no IANA zone"):
        assert words in twice
    assert [each["check"] for each in found["gone"] if each["problem"]] == ["data"]
    assert "bolts has 6" in message
    assert "twice has 3" in message
    assert "gone has 1" in message


@pytest.mark.usefixtures("lines")
def test_check_wants_lines_or_all() -> None:
    assert checked()[0] == 2
    assert checked("bolts", "--all")[0] == 2
    with pytest.raises(UsageError, match="or --all"):
        CliRunner().invoke(app, ["check"], catch_exceptions=False)


def test_a_line_that_cannot_be_judged_is_a_problem(lines: Path) -> None:
    write(lines, "nuts", "roles: {gate: 0}\n", data="nuts")
    findings = check_line(Services.from_environment(), load_line("nuts"), trials=False)
    assert problems(findings) == ["gate"]
    write(lines, "nuts", "roles: {gate: 0.1}\n", data="nuts")
    few = check_line(Services.from_environment(), load_line("nuts"), trials=False)
    assert problems(few) == []
    assert "gate images with pasted defects" in few[-1].found
    assert "A champion is replaced only with at least 10: add good images" in few[-1].found


def predicted(**changes: object) -> Forecast:
    made = Forecast(WORK, checking_seconds=5.0, evaluation_seconds=30.0, promotion_seconds=40.0, starting_seconds=24.0,
                    served_ms=40.0, busy=0.0)  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_takt_and_the_disk_are_checked_against_the_forecast(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lines, "bolts", "serving: {takt_ms: 35}\n")
    services, line = Services.from_environment(), load_line("bolts")
    monkeypatch.setattr(readiness, "forecast", lambda *_, **__: predicted())
    findings = {each.check: each for each in check_line(services, line, trials=True)}
    assert findings["takt"].problem
    assert "about 40 ms in the served form, more than serving.takt_ms 35" in findings["takt"].found
    assert "about 129 s" in findings["run"].found.replace("2 min", "129 s")
    assert not findings["disk"].problem
    assert "machine" not in findings
    monkeypatch.setattr(readiness, "forecast", lambda *_, **__: predicted(served_ms=30.0, busy=1.5))
    findings = {each.check: each for each in check_line(services, line, trials=True)}
    assert not findings["takt"].problem
    assert "kept 1.5 of" in findings["machine"].found
    monkeypatch.setattr(readiness, "forecast", lambda *_, **__: predicted(busy=1.5))
    findings = {each.check: each for each in check_line(services, line, trials=True)}
    assert "more than serving.takt_ms" in findings["takt"].found
    assert not findings["takt"].problem, "the machine was busy"
    huge = replace(WORK, new_features_bytes=10**18)
    monkeypatch.setattr(readiness, "forecast", lambda *_, **__: predicted(computing=huge))
    assert problems(check_line(services, line, trials=True)) == ["disk", "takt"]


def test_nothing_is_tried_for_a_run_that_would_fail(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lines, "bolts", "quality: {min_train: 500}\n")
    monkeypatch.setattr(readiness, "forecast", lambda *_, **__: pytest.fail("it was tried"))
    findings = check_line(Services.from_environment(), load_line("bolts"), trials=True)
    assert problems(findings) == ["data gate"]


@pytest.mark.parametrize(("name", "rivals"), [("bolts", 0), ("bolts", 2), ("nuts", 0), ("nuts", 1)])
def test_the_whole_run_is_forecast(name: str, rivals: int, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lines, name, data=name)
    services, line = Services.from_environment(), load_line(name)
    manifest, _ = materialise(line, services.workspace)
    monkeypatch.setattr(forecasting, "estimate", lambda *_: WORK)
    monkeypatch.setattr(forecasting, "apart", lambda *_: JUDGING)
    monkeypatch.setattr(forecasting, "_rivals", lambda *_: rivals)
    monkeypatch.setattr(forecasting, "busy_elsewhere", lambda: 0.5)
    found = forecast(services, line, manifest, checking_seconds=5.0)
    held_out, gate = len(manifest.rows(role="calibrate")), len(manifest.rows(role="gate"))
    test = 24 if name == "bolts" else 2
    assert found.evaluation_seconds == 4.0 + 0.5 * (held_out + test) + 0.25 * test + 7.0
    judged = 0.5 * 24 if name == "bolts" else 1.5 * gate
    assert found.promotion_seconds == judged * (1 + rivals) + 2.0 + (7.0 if rivals else 0.0) + 2 * 3.0
    assert found.starting_seconds == 8 * 3.0
    assert found.seconds == 5.0 + 10.0 + 20.0 + found.evaluation_seconds + found.promotion_seconds + 24.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("bolts", "csflow"), ("nuts", "mahalanobis")])
def test_the_trials_judge_real_images(name: str, kind: str, lines: Path) -> None:
    write(lines, name, f"detector: {kind}\n", data=name)
    services, line = Services.from_environment(), load_line(name)
    manifest, _ = materialise(line, services.workspace)
    trial = forecasting.try_judging(line, manifest)
    assert min(trial.saving_seconds, trial.report_seconds, trial.gate_seconds, trial.served_ms) > 0
    assert (trial.pasted_seconds > 0) is (name == "nuts")


def test_estimate_shows_every_step_and_says_that_the_machine_is_busy(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lines, "bolts")
    monkeypatch.setattr(forecasting, "forecast", lambda *_, **__: predicted(busy=1.5))
    monkeypatch.setattr("csflow.adapters.data_quality.run_data_gate", passes)
    output = CliRunner().invoke(app, ["estimate", "bolts"], catch_exceptions=False).stdout
    for words in ("checkout and data gate", "evaluation and report", "gate and promotion", "starts of the steps"):
        assert words in output
    assert "whole run" in output
    assert "other processes kept 1.5 of" in output
    plain = json.loads(CliRunner().invoke(app, ["estimate", "bolts", "--json"], catch_exceptions=False).stdout)
    assert (plain["run_seconds"], plain["promotion_seconds"], plain["busy"]) == (129.0, 40.0, 1.5)


def passes(manifest: Manifest, *_: object) -> QualityReport:
    return QualityReport("bolts", {}, (), (), {"images": len(manifest)}, {})
