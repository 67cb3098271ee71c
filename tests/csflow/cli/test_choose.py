"""``csflow choose`` on an ablation whose rows were written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from csflow.ablation.groups import variants
from csflow.ablation.plan import AblationPlan, PlannedVariant, newest_ablation
from csflow.ablation.request import Request, changed
from csflow.ablation.rows import UNFINISHED, AblationRow
from csflow.ablation.timing import Timing, machine
from csflow.cli.ablate import request
from csflow.cli.app import app
from csflow.config import load_line
from csflow.errors import ConfigError, DataError, UsageError
from csflow.metrics import Measured
from csflow.system.files import write_json
from csflow.system.workspace import Workspace

FIGURES = {128: (10.0, 0.90, 0.99), 256: (20.0, 0.95, 0.96), 512: (40.0, 0.99, 0.95)}
"""Milliseconds, AUROC against synthetic defects and on test images by width."""


@pytest.fixture
def ablated(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plates.yaml").write_text("line: plates\ndata: {repo: ., path: plates}\nflow: {hidden: 256}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path))
    line = load_line("plates")
    entries = []
    for variant in variants(Request(line=line, groups=("width",), widths=tuple(FIGURES))):
        ms, synthetic, test = FIGURES[variant.line.flow.hidden]
        key = f"{variant.line.flow.hidden:064d}"
        timing = Timing(median_ms=ms, p95_ms=1.5 * ms, repetitions=9, threads=1, machine="an abacus", load=0.0)
        metrics = {name: Measured(value, value - 0.01, min(1.0, value + 0.01))
                   for name, value in (("synthetic_auroc", synthetic), ("image_auroc", test))}  # fmt: skip
        row = AblationRow(key=key, line="plates", seed=0, config={}, metrics=metrics, timing=timing)
        write_json(home / "ablations" / ".rows" / f"{key}.json", row.model_dump(mode="json"))
        entries.append(PlannedVariant(variant=variant, key=key))
    plan = AblationPlan(line=line, entries=tuple(entries), run_id="none", planned="2030-01-01T00:00:00+00:00")
    write_json(home / "ablations" / "plates" / "feed" / "plan.json", plan.model_dump(mode="json"))
    return home


def choose(*words: str) -> str:
    done = CliRunner().invoke(app, ["choose", "plates", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.usefixtures("ablated")
def test_synthetic_defects_decide_unless_the_test_images_are_asked_for() -> None:
    text = choose("--takt-ms", "35")
    assert "Chosen for a takt of 35 ms: width: width 256, 20.0 ms" in text
    assert "measured on: an abacus" in text
    assert "different machines" not in text
    assert "cores busy" not in text
    assert "this machine is another one" in text
    assert "test images" not in text
    by_test = choose("--takt-ms", "35", "--by", "test")
    assert "Chosen for a takt of 35 ms: width: width 128" in by_test
    assert "too good" in by_test


@pytest.mark.usefixtures("ablated")
def test_the_keys_printed_make_the_chosen_variant() -> None:
    done = CliRunner().invoke(app, ["choose", "plates", "--takt-ms", "100"], catch_exceptions=False)
    text = done.output.partition("Set in the line's YAML:\n")[2].partition("From the ablation")[0]
    keys: dict[str, Any] = yaml.safe_load(text)
    assert keys == {"flow": {"hidden": 512}}
    assert changed(load_line("plates"), {"flow.hidden": 512}).flow.hidden == 512
    assert "nothing to set" in choose("--takt-ms", "35"), "256 is what the line has"
    assert "more than 5 %" in choose("--takt-ms", "25")
    assert "more than 5 %" not in choose("--takt-ms", "30")


def timed(home: Path, width: int, **changes: Any) -> None:
    """Change the time in a row."""
    file = home / "ablations" / ".rows" / f"{width:064d}.json"
    row = json.loads(file.read_text())
    write_json(file, row | {"timing": row["timing"] | changes})


def test_times_that_cannot_be_compared_are_said(ablated: Path) -> None:
    timed(ablated, 512, machine="a slide rule")
    timed(ablated, 128, load=1.7)
    text = choose("--takt-ms", "35")
    assert "timed on different machines (a slide rule; an abacus)" in text
    assert "1 of 3 times were taken while other processes kept up to 1.7 cores busy" in text
    for width in FIGURES:
        timed(ablated, width, machine=machine(), load=0.0)
    assert "machine" not in choose("--takt-ms", "35").replace(f"measured on: {machine()}", "")


def test_scores_and_maps_are_candidates_by_test_images_only(ablated: Path) -> None:
    line = load_line("plates")
    entries, best = [], {"exact likelihood": 0.99}
    for variant in variants(Request(line=line, groups=("score",), overrides={"scoring.map": "all"})):
        timing = Timing(median_ms=9, p95_ms=9, repetitions=9, threads=1, machine=machine(), load=0.0)
        value = Measured(best.get(variant.name, 0.9), 0.89, 1.0)
        row = AblationRow(key=variant.name, line="plates", seed=0, config={}, timing=timing,
                  metrics={"synthetic_auroc": value, "image_auroc": value})  # fmt: skip
        write_json(ablated / "ablations" / ".rows" / f"{row.key}.json", row.model_dump(mode="json"))
        entries.append(PlannedVariant(variant=variant, key=row.key))
    plan = AblationPlan(line=line, entries=tuple(entries), run_id="none", planned="2031-01-01T00:00:00+00:00",
                overrides={"scoring.map": "all"})  # fmt: skip
    write_json(ablated / "ablations" / "plates" / "food" / "plan.json", plan.model_dump(mode="json"))
    text = choose("--takt-ms", "35")
    assert "Chosen for a takt of 35 ms: score: mean z²" in text
    left_out = "score: exact likelihood, score: maximum of the map"
    assert f"left out, since synthetic defects cannot order scores and maps: {left_out}." in text
    by_test = choose("--takt-ms", "35", "--by", "test")
    assert "Chosen for a takt of 35 ms: score: exact likelihood" in by_test
    assert "left out" not in by_test


@pytest.mark.usefixtures("ablated")
def test_nothing_fits_and_never_ablated_are_errors() -> None:
    with pytest.raises(DataError, match=r"fastest is 'width: width 128' with 10\.0 ms"):
        choose("--takt-ms", "9")


def change_rows(home: Path, **changes: Any) -> None:
    """Change every row."""
    for file in (home / "ablations" / ".rows").iterdir():
        write_json(file, json.loads(file.read_text()) | changes)


def test_the_takt_of_the_line_is_taken_if_no_other_is_given(ablated: Path) -> None:
    with pytest.raises(UsageError, match=r"Give --takt-ms, or set serving\.takt_ms in the YAML of plates"):
        choose()
    file = ablated.parent / "plates.yaml"
    file.write_text(file.read_text() + "serving: {takt_ms: 35}\n")
    assert "Chosen for a takt of 35 ms: width: width 256" in choose()
    assert "Chosen for a takt of 15 ms: width: width 128" in choose("--takt-ms", "15")


def test_an_interrupted_ablation_is_said_to_be_one(ablated: Path) -> None:
    for by in ("synthetic", "test"):
        change_rows(ablated, metrics={}, timing=None, error=UNFINISHED)
        with pytest.raises(DataError, match=r"interrupted before the first.*the same csflow ablate command again"):
            choose("--takt-ms", "9", "--by", by)
    for file in (ablated / "ablations" / ".rows").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"interrupted before the first.*goes on where it stopped"):
        choose("--takt-ms", "9")


def test_an_ablation_that_was_interrupted_later_chooses_among_what_there_is(ablated: Path) -> None:
    write_json(
        ablated / "ablations" / ".rows" / f"{512:064d}.json",
        json.loads((ablated / "ablations" / ".rows" / f"{512:064d}.json").read_text())
        | {"metrics": {}, "timing": None, "error": UNFINISHED},
    )
    (ablated / "ablations" / ".rows" / f"{128:064d}.json").unlink()
    text = choose("--takt-ms", "35")
    assert "width: width 256" in text
    assert "2 variants of this ablation were not measured yet" in text


def test_each_reason_for_nothing_to_choose_has_its_own_words(ablated: Path) -> None:
    change_rows(ablated, metrics={})
    with pytest.raises(DataError, match=r"Raise roles\.gate"):
        choose("--takt-ms", "35")
    with pytest.raises(DataError, match="labelled test images"):
        choose("--takt-ms", "35", "--by", "test")
    change_rows(ablated, timing=None)
    with pytest.raises(DataError, match="No variant was timed"):
        choose("--takt-ms", "35")
    change_rows(ablated, error="Training diverged in epoch 2.")
    with pytest.raises(DataError, match=r"that was measured failed: Training diverged in epoch 2\."):
        choose("--takt-ms", "35")


def test_a_damaged_plan_is_put_aside(ablated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ablated / "ablations" / "plates" / "feed" / "plan.json").write_text('{"line": ')
    with pytest.raises(DataError, match="csflow ablate plates"):
        choose("--takt-ms", "35")
    assert (ablated / "ablations" / "plates" / "feed" / "plan.json.damaged").is_file()


@pytest.mark.usefixtures("home")
def test_a_line_that_was_never_ablated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plates.yaml").write_text("line: plates\ndata: {repo: ., path: plates}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path))
    with pytest.raises(DataError, match="csflow ablate plates"):
        choose("--takt-ms", "9")


@pytest.mark.usefixtures("ablated")
def test_options_become_a_request() -> None:
    found = request("plates", ["shots"], ["flow.hidden=8"], "0, 1,2", "", "4,16", "128", ["a:hub"], "")
    assert (found.seeds, found.shots, found.overrides) == ((0, 1, 2), (4, 16), {"flow.hidden": 8})
    with pytest.raises(ConfigError, match="'one'"):
        request("plates", ["shots"], [], "one", "", "16", "128", [], "")


@pytest.mark.usefixtures("ablated")
def test_times_are_taken_again_when_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ablate(_: Request, __: Workspace, *, retime: bool) -> Path:
        seen.append(retime)
        return newest_ablation("plates", Workspace.from_environment())

    monkeypatch.setattr("csflow.ablation.run.run_ablation", ablate)
    for words in ([], ["--retime"]):
        done = CliRunner().invoke(app, ["ablate", "plates", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert seen == [False, True]


def test_the_help_says_who_is_no_candidate() -> None:
    done = CliRunner().invoke(app, ["choose", "--help"], env={"COLUMNS": "200"})
    assert "score and map" in " ".join(done.output.split())
