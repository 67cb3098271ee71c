"""``csflow choose`` on an ablation whose rows were written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from csflow.ablation.groups import variants
from csflow.ablation.request import Request, changed
from csflow.ablation.tradeoff import Entry, Row, Timing
from csflow.cli.ablate import request
from csflow.cli.app import app
from csflow.config import load_line
from csflow.errors import ConfigError, DataError
from csflow.files import write_json
from csflow.metrics import Measured
from csflow.steps.ablate import Plan

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
        row = Row(key=key, line="plates", seed=0, config={}, metrics=metrics, timing=timing)
        write_json(home / "ablations" / ".rows" / f"{key}.json", row.model_dump(mode="json"))
        entries.append(Entry(variant=variant, key=key))
    plan = Plan(line=line, entries=tuple(entries), run_id="none", planned="2030-01-01T00:00:00+00:00")
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


@pytest.mark.usefixtures("ablated")
def test_nothing_fits_and_never_ablated_are_errors() -> None:
    with pytest.raises(DataError, match=r"fastest is 'width: width 128' with 10\.0 ms"):
        choose("--takt-ms", "9")


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
