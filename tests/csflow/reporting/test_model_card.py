"""The model card leads with the defects found, and contains what a person asks about a version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.config import DataConfig, LineConfig
from csflow.reporting.findings import Evaluation
from csflow.reporting.model_card import Decision, defects_found, model_card
from csflow.reporting.report import write_report
from tests.csflow.reporting.test_report import calibration, evaluation, result

LINE = LineConfig(line="tiles", description="Magnetic <b>tiles</b> | grey", data=DataConfig(path="data/tiles"))


def facts_of(folder: Path, found: Evaluation) -> dict[str, object]:
    write_report(folder, found)
    facts: dict[str, object] = json.loads((folder / "report.json").read_text())
    return facts


def test_it_leads_with_the_defects_found_and_says_the_rest(tmp_path: Path) -> None:
    found = evaluation()
    links = {"report": "#/experiments/1/runs/abc/artifacts/report/report.html"}
    card = model_card(LINE, facts_of(tmp_path, found), Decision("promoted", "It is *better*."), links)
    assert found.detections is not None
    assert card.startswith(f"Defects found at the threshold: **{found.detections.text}**.")
    for fact in (
        "**The gate: promoted.** It is \\*better\\*.", "CS-Flow on", "seed 0", "data/tiles of", "at abc123",
        "600 fit, 65 test images", found.calibration.statement, "| False alarms |", "| Image AUROC |",
        "| Pixel AUROC |",
        "[report](#/experiments/1/runs/abc/artifacts/report/report.html)",
    ):  # fmt: skip
        assert fact in card, fact
    assert "<b>" not in card
    assert "tiles\\|" not in card
    assert "&lt;b>tiles&lt;/b> \\| grey" in card


@pytest.mark.parametrize(("found", "warned"), [(2, True), (20, False)])
def test_it_warns_of_a_detector_that_finds_few(tmp_path: Path, found: int, warned: bool) -> None:
    calibrated = calibration()
    images = [result(calibrated, 2.0 if i < found else 0.9, "crack", i) for i in range(25)]
    card = model_card(LINE, facts_of(tmp_path, Evaluation("tiles", images, calibrated)), Decision())
    assert ("fewer than 50 %" in card) == warned
    assert "The gate" not in card


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    only_good = Evaluation("tiles", [result(calibration(), 0.1)], calibration())
    for facts in (facts_of(tmp_path / "good", only_good), facts_of(tmp_path / "none", evaluation("none")), {}):
        card = model_card(LINE, facts, Decision())
        assert "not measured" in card
        assert "| Defects found |" not in card or "0 of 0" in card
    assert defects_found({}) is None
