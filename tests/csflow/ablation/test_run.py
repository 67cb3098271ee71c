"""Run ablations of a small real line, with real models and MLflow on SQLite; only the checkout is a plain folder."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csflow.ablation.measure import Bench
from csflow.ablation.plan import AblationPlan, newest_ablation, read_plan
from csflow.ablation.rows import UNFINISHED, AblationRow, row_file, stored_row
from csflow.ablation.run import _nested_run, measuring_order, run_ablation, run_variant
from csflow.adapters.mlflow.connection import client_of
from csflow.adapters.mlflow.runs import ablations_of
from csflow.adapters.mlflow.tracking import Tracker
from csflow.errors import RegistryError
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from tests.csflow.ablation.small_line import measured_at_once, planned, request, rows_of, store


def test_every_variant_has_its_figures_and_its_row_file(first: Path, workspace: Workspace) -> None:
    rows = rows_of(first, workspace)
    assert len(rows) == 4
    for row in rows.values():
        assert set(row.metrics) == {"image_auroc", "average_precision", "f1_max", "fpr_at_95_tpr", "pixel_auroc",
                                    "pixel_ap", "aupro", "synthetic_auroc", "held_out_nll"}  # fmt: skip
        assert json.loads((first / "rows" / f"{row.key}.json").read_text()) == row.model_dump(mode="json")
        assert row.timing is not None
        assert 0 < row.timing.median_ms <= row.timing.p95_ms
        assert (row.git_rev, row.images["test_good"], row.images["test_defective"]) == ("c0ffee", 8, 8)
    assert rows["standardization: standardised"] == rows["map: finest scale"], "one experiment in two groups"
    assert {file.name for file in first.iterdir()} == {
        "plan.json", "rows", "table.csv", "table.md", "table.html", "pareto.png", "roc-map.png",
        "roc-standardization.png",
    }  # fmt: skip


def test_mlflow_has_the_variants_below_their_parent(first: Path, workspace: Workspace) -> None:
    plan = read_plan(first)
    parent = Tracker(workspace).read_run(plan.run_id)
    nested = Tracker(workspace).nested_runs(plan.run_id)
    assert (parent.status, parent.metrics["variants"], parent.metrics["failed"]) == ("FINISHED", 4, 0)
    assert {run.tags["row"] for run in nested} == set(plan.keys)
    assert len(nested) == len(plan.keys) == 3
    rows = {row.key: row for row in rows_of(first, workspace).values()}
    for run in nested:
        row = rows[run.tags["row"]]
        assert run.status == "FINISHED"
        assert run.metrics["image_auroc"] == row.metrics["image_auroc"].value
        assert row.timing is not None
        assert run.metrics["milliseconds"] == row.timing.median_ms
        assert run.params["flow.hidden"] == "4"
    assert Tracker(workspace).list_runs(ablations_of("plates"), limit=50)
    artifacts = {item.path for item in client_of(workspace).list_artifacts(plan.run_id)}
    assert artifacts == {"table.csv", "table.md", "table.html", "pareto.png", "plan.json", "rows", "roc-map.png",
                         "roc-standardization.png"}  # fmt: skip
    assert (first / "table.html").read_text().count("data:image/png") == 3


def test_asked_again_nothing_is_measured_and_the_run_is_the_same(
    first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    before = read_plan(first)
    again = run_ablation(request(groups=("map", "standardization")), Services.of(workspace))
    assert (again, read_plan(again).run_id) == (first, before.run_id)
    assert len(Tracker(workspace).nested_runs(before.run_id)) == 3
    part = run_ablation(request(groups=("map",)), Services.of(workspace))
    assert part != first
    nested = Tracker(workspace).nested_runs(read_plan(part).run_id)
    assert sorted(run.metrics["image_auroc"] for run in nested) == sorted(
        row.metrics["image_auroc"].value for name, row in rows_of(first, workspace).items() if name.startswith("map")
    )
    assert newest_ablation("plates", workspace) == part


def breaking(measure_it: Callable[..., AblationRow], error: BaseException) -> Callable[..., AblationRow]:
    """Measuring that fails for the score ``nll``."""

    def broken(bench: Bench, variant: Any, key: str, publish: Any) -> AblationRow:
        if variant.line.scoring.score == "nll":
            raise error
        return measure_it(bench, variant, key, publish)

    return broken


@pytest.mark.usefixtures("at_once")
def test_a_broken_variant_loses_only_its_own_row_and_is_tried_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(overrides={"scoring.map": "all"})
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", breaking(Bench.measure, RuntimeError("no memory")))
        folder = run_ablation(asked, Services.of(workspace))
    rows = rows_of(folder, workspace)
    assert {name: bool(row.error) for name, row in rows.items()} == {
        "score: mean z²": False, "score: exact likelihood": True, "score: maximum of the map": False,
    }  # fmt: skip
    assert "RuntimeError: no memory" in (folder / "table.html").read_text()
    failed = [r for r in Tracker(workspace).nested_runs(read_plan(folder).run_id) if r.status == "FAILED"]
    assert [run.tags["error"] for run in failed] == ["no memory"]
    run_ablation(asked, Services.of(workspace))
    assert not any(row.error for row in rows_of(folder, workspace).values())
    assert "no memory" not in (folder / "table.html").read_text()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_what_ends_the_process_ends_the_ablation_and_keeps_what_was_finished(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    asked = request(overrides={"flow.clamp": 2.0 + 0.1 * isinstance(stop, SystemExit)})
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", breaking(Bench.measure, stop))
        with pytest.raises(type(stop)):
            run_ablation(asked, Services.of(workspace))
    folder = newest_ablation("plates", workspace)
    assert list(rows_of(folder, workspace)) == ["score: mean z²"]
    assert "mean z²" in (folder / "table.md").read_text()
    assert len(list((folder / "rows").iterdir())) == 1, "no trace of the interrupted one"
    assert Tracker(workspace).read_run(read_plan(folder).run_id).status == "KILLED"


@pytest.mark.usefixtures("at_once")
def test_a_row_says_that_it_is_measured_until_it_is(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it says so still after the process was killed, when nobody can write any more."""
    folder, keys = planned(workspace, 3.1)
    seen = []

    def look(bench: Bench, variant: Any, key: str, publish: Any) -> AblationRow:
        page, row = (folder / "table.md").read_text(), stored_row(workspace, key)
        seen.append((row is not None and row.is_unfinished, "Broken: mean z²: The measurement has not" in page))
        return measured_at_once(bench, variant, key, publish)

    monkeypatch.setattr(Bench, "measure", look)
    row = run_variant(folder, keys["mean"], Services.of(workspace))
    assert seen == [(True, True)]
    assert not row.error
    assert stored_row(workspace, keys["mean"]) == row
    assert "Broken" not in (folder / "table.md").read_text()


@pytest.mark.usefixtures("at_once")
def test_what_ended_the_process_goes_last_and_everything_else_is_in_the_tables_by_then(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, keys = planned(workspace, 3.2)
    store(workspace, keys["mean"], UNFINISHED)
    store(workspace, keys["nll"], "diverged")
    assert measuring_order(read_plan(folder), Services.of(workspace)) == [keys["max"], keys["nll"], keys["mean"]]
    order = []

    def look(bench: Bench, variant: Any, key: str, publish: Any) -> AblationRow:
        order.append(key)
        if key == keys["mean"]:
            run = Tracker(workspace).read_run(read_plan(folder).run_id)
            assert (run.metrics["variants"], run.metrics["failed"]) == (3, 1)
            assert (folder / "pareto.png").exists()
        return measured_at_once(bench, variant, key, publish)

    monkeypatch.setattr(Bench, "measure", look)
    asked = request(overrides={"flow.clamp": 3.2})
    assert run_ablation(asked, Services.of(workspace)) == folder
    assert order == [keys["max"], keys["nll"], keys["mean"]]


def test_of_several_that_ended_the_process_the_one_tried_longest_ago_is_first(workspace: Workspace) -> None:
    folder, keys = planned(workspace, 3.3)
    for age, key in enumerate((keys["max"], keys["mean"], keys["nll"])):
        store(workspace, key, UNFINISHED)
        os.utime(row_file(workspace, key), (1000 - age, 1000 - age))
    assert measuring_order(read_plan(folder), Services.of(workspace)) == [keys["nll"], keys["mean"], keys["max"]]


@pytest.mark.parametrize("before", ["", "diverged", UNFINISHED])
def test_sigterm_outside_a_training_gives_the_former_row_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    folder, keys = planned(workspace, 3.5 + 0.01 * len(before))
    if before:
        store(workspace, keys["mean"], before)
    former = stored_row(workspace, keys["mean"])
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Bench, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run_variant(folder, keys["mean"], Services.of(workspace))
    assert stopped.value.code == 143
    assert stored_row(workspace, keys["mean"]) == former
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.usefixtures("at_once")
def test_a_tracker_that_fails_once_costs_one_row(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, keys = planned(workspace, 3.6)
    nested = _nested_run

    def failing(services: Services, plan: AblationPlan, key: str) -> str:
        if key == keys["nll"]:
            raise RegistryError("the tracker is away")
        return nested(services, plan, key)

    with monkeypatch.context() as patch:
        patch.setattr("csflow.ablation.run._nested_run", failing)
        rows = [run_variant(folder, key, Services.of(workspace)) for key in keys.values()]
    assert [row.error for row in rows] == ["", "the tracker is away", ""]
    run_variant(folder, keys["nll"], Services.of(workspace))
    with monkeypatch.context() as patch:
        patch.setattr("csflow.ablation.run._nested_run", failing)
        assert not run_variant(folder, keys["nll"], Services.of(workspace)).error, "found, if not logged"
