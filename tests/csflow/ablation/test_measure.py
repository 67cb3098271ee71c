"""Measure variants: their figures are those of the model, and doubtful times are taken again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from csflow.ablation import measure, timing
from csflow.ablation.collect import read_results
from csflow.ablation.measure import Bench
from csflow.ablation.plan import read_plan
from csflow.ablation.rows import row_file, stored_row
from csflow.ablation.run import run_ablation, run_variant
from csflow.ablation.timing import Timing
from csflow.adapters.mlflow.tracking import Tracker
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from tests.csflow.ablation.small_line import LINE, OTHER, request, rows_of


@pytest.mark.slow
def test_figures_are_those_of_the_model(first: Path, workspace: Workspace) -> None:
    """Scored by hand, judged by scikit-learn; nothing held out was fitted."""
    from csflow.detector.model import score_stored
    from csflow.detector.model_file import load_model
    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore
    from csflow.runs.find_or_fit import find_or_fit

    row = rows_of(first, workspace)["map: finest scale"]
    manifest = Bench(Services.of(workspace)).images(LINE)
    cached = FeatureStore(workspace.features).extract(manifest, LINE.features, load_backbone(LINE.features))
    fitted = list(manifest.rows(role="fit").frame["sha256"])
    models = set(workspace.models.iterdir())
    folder = find_or_fit(LINE, cached, fitted, workspace.models)
    assert set(workspace.models.iterdir()) == models, "it was trained before"
    model = load_model(folder / "model.safetensors", LINE, cached.shapes)
    test = manifest.rows(role="test").frame
    scores, _ = score_stored(model, cached.open(list(test["sha256"])))
    expected = roc_auc_score(test["label"] == "defective", scores)
    assert row.metrics["image_auroc"].value == pytest.approx(expected, abs=1e-9)
    for label in ("good", "defective"):
        assert row.test_scores[label] == pytest.approx(scores[test["label"] == label], rel=1e-5)
    held_out = manifest.frame["role"].isin(["calibrate", "gate"]).sum()
    assert (row.images["fitted"], row.images["held_out"]) == (len(fitted), held_out)
    flow = CrossScaleFlow(LINE.flow, channels=cached.channels, scales=2).double()
    flow.load_state_dict({name.removeprefix("flow."): tensor for name, tensor in model.state_dict().items()})
    good = manifest.frame[manifest.frame["role"].isin(["calibrate", "gate"])]
    pyramid = [level.double() for level in cached.open(list(good["sha256"])).batch(range(len(good)))]
    with torch.inference_mode():
        each = flow.nll(pyramid) / sum(level[0].numel() for level in pyramid)
    spread = each.std().item() / len(good) ** 0.5
    found = row.metrics["held_out_nll"]
    assert found.value == pytest.approx(each.mean().item(), abs=1e-5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=1e-3)
    assert row.parameters == sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())


def served_in(milliseconds: float, load: float | None = 0.0, where: str | None = None) -> Timing:
    return Timing(median_ms=milliseconds, p95_ms=milliseconds, repetitions=5, threads=1, load=load,
                  machine=where or timing.machine())  # fmt: skip


@pytest.fixture
def no_times(first: Path, workspace: Workspace) -> Iterator[Path]:
    """The folder of the times kept, empty; those of the other tests come back afterwards."""
    folder, aside = workspace.ablations / ".timings", workspace.ablations / ".aside"
    folder.rename(aside)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


@pytest.mark.slow
def test_a_row_timed_elsewhere_or_on_a_busy_machine_is_timed_again_and_no_more(
    first: Path, workspace: Workspace, no_times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(first, workspace)["map: all scales"]
    file = row_file(workspace, before.key)
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    for number, doubtful in enumerate((served_in(3.0, where="an abacus"), served_in(3.0, load=1.5))):
        file.write_text(before.model_copy(update={"timing": doubtful}).model_dump_json())
        fresh = served_in(111.0 + number)
        with monkeypatch.context() as patch:
            patch.setattr(measure, "time_served", lambda *_, fresh=fresh: fresh)
            row = run_variant(first, before.key, Services.of(workspace))
        assert row == before.model_copy(update={"timing": fresh})
        assert stored_row(workspace, before.key) == row
        nested = Tracker(workspace).nested_runs(read_plan(first).run_id)
        (run,) = (run for run in nested if run.tags["row"] == before.key)
        assert run.metrics["milliseconds"] == fresh.median_ms
        shutil.rmtree(no_times)
    monkeypatch.setattr(measure, "time_served", lambda *_: pytest.fail("it was timed here and in peace"))
    assert run_variant(first, before.key, Services.of(workspace)) == row


@pytest.mark.slow
def test_asked_to_all_rows_are_timed_again(first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {row.key: row for row in rows_of(first, workspace).values()}
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    monkeypatch.setattr(measure, "time_served", lambda *_: served_in(77.0))
    assert run_ablation(request(groups=("map", "standardization")), Services.of(workspace), retime=True) == first
    for row in rows_of(first, workspace).values():
        assert row == before[row.key].model_copy(update={"timing": served_in(77.0)})


def test_a_row_that_cannot_be_timed_again_stays(
    first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(first, workspace)["map: all scales"]
    monkeypatch.setattr(measure, "time_served", lambda *_: 1 / 0)
    assert run_variant(first, before.key, Services.of(workspace), Bench(Services.of(workspace), retime=True)) == before


def test_a_time_is_kept_unless_the_machine_was_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    judge: Any = SimpleNamespace(graph=["a graph"], manifest=SimpleNamespace(files=[]), save=lambda *_: None)
    backbone: Any = None
    bench = Bench(Services.of(workspace))

    def timed(taken: Timing | None, bench: Bench) -> float:
        monkeypatch.setattr(measure, "time_served", lambda *_: taken or pytest.fail("there is a time"))
        return bench._timing(judge, backbone).median_ms

    assert timed(served_in(50, load=1.0), bench) == 50
    assert timed(None, bench) == 50, "once for all seeds"
    assert timed(served_in(60, load=2.0), Bench(Services.of(workspace))) == 50, "both are too long"
    assert timed(served_in(55), Bench(Services.of(workspace))) == 55, "in peace"
    assert timed(None, Bench(Services.of(workspace))) == 55
    (file,) = (workspace.ablations / ".timings").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert timed(served_in(55), Bench(Services.of(workspace))) == 55, "a damaged time is measured again"
    again = Bench(Services.of(workspace), retime=True)
    assert timed(served_in(70, load=1.0), again) == 70
    assert timed(None, again) == 70


@pytest.mark.slow
def test_lines_fitted_together_share_one_model_and_are_judged_apart(workspace: Workspace) -> None:
    folder = run_ablation(request(groups=("joint",), joined=(OTHER,)), Services.of(workspace))
    _, summaries = read_results(folder, workspace)
    rows = {(s.variant.line.line, s.variant.name): s.rows[0] for s in summaries}
    fitted = {key: row.images["fitted"] for key, row in rows.items()}
    both = fitted["plates", "alone"] + fitted["tiles", "alone"]
    assert fitted["plates", "2 lines together"] == fitted["tiles", "2 lines together"] == both
    assert rows["plates", "2 lines together"].key != rows["tiles", "2 lines together"].key
    histories = [json.loads(file.read_text())["epochs"] for file in workspace.models.glob("*/training.json")]
    seconds = rows["plates", "2 lines together"].training_seconds
    assert seconds == rows["tiles", "2 lines together"].training_seconds, "fitted once"
    assert seconds in [sum(epoch["seconds"] for epoch in history) for history in histories]
    page = (folder / "table.md").read_text()
    assert "98.2 on MVTec AD (section 4.5, all 15 classes)" in page


@pytest.mark.slow
def test_few_shots_are_judged_on_the_same_held_out_images(workspace: Workspace) -> None:
    folder = run_ablation(request(groups=("shots",), shots=(4,), seeds=(0, 1)), Services.of(workspace))
    _, (few, full) = read_results(folder, workspace)
    assert [row.images["fitted"] for row in few.rows] == [4, 4]
    assert {row.images["held_out"] for row in few.rows} == {full.rows[0].images["held_out"]}
    assert few.rows[0].metrics != few.rows[1].metrics, "other seeds draw other images"


@pytest.mark.slow
def test_equal_graphs_are_timed_once(first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "time_served", lambda *_: pytest.fail("the graph was timed before"))
    folder = run_ablation(request(groups=("map",), overrides={"training.learning_rate": 1e-3}), Services.of(workspace))
    assert all(row.timing is not None and not row.error for row in rows_of(folder, workspace).values())
