"""Ablations of a small real line: real trunk and models, MLflow on SQLite; only the checkout is a plain folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from csflow.ablation import measure, timing
from csflow.ablation import run as ablate
from csflow.ablation.measure import Bench
from csflow.ablation.request import Request, Variant
from csflow.ablation.tradeoff import ENDED, Row, Timing
from csflow.adapters.mlflow import tracking
from csflow.adapters.versioning import CheckedOut
from csflow.config import DataConfig, FeatureConfig, FlowConfig, LineConfig, RolesConfig, TrainingConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.errors import DataError, RegistryError
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.metrics import Measured
from csflow.runs import checkout
from csflow.system.workspace import Workspace

LINE = LineConfig(
    line="plates",
    data=DataConfig(path="plates"),
    features=FeatureConfig(image_size=64, scales=2),
    flow=FlowConfig(blocks=1, hidden=4),
    training=TrainingConfig(epochs=1, batch_size=8, precision="float32", device="cpu"),
    roles=RolesConfig(calibrate=0.25, gate=0.15),
)
OTHER = LINE.model_copy(update={"line": "tiles", "data": DataConfig(path="tiles")})


def draw(root: Path, seed: int) -> None:
    """Grained plates; defective ones have a bright blotch and a mask."""
    rng = np.random.default_rng(seed)
    for folder, count in (("ground_truth/blotch", 0), ("train/good", 24), ("test/good", 8), ("test/blotch", 8)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            plate, mask = rng.normal(120, 12, (48, 48)), np.zeros((48, 48), np.uint8)
            if "blotch" in folder:
                mask[10:26, 12:30] = 255
                plate[mask > 0] += 90
                Image.fromarray(mask).save(root / "ground_truth" / "blotch" / f"{number}_mask.png")
            Image.fromarray(np.clip(plate, 0, 255).astype(np.uint8)).save(root / folder / f"{number}.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("plates", "tiles")):
        draw(root / name, seed)
    return root


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Workspace]:
    """One for all tests: a tracking database takes seconds to make, and models are found again."""
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def materialise(line: LineConfig, _: Workspace) -> tuple[Manifest, CheckedOut]:
        root = images / line.data.path
        return build_manifest(root, line=line.line, roles=line.roles), CheckedOut(root, "c0ffee", "0.dir")

    patch.setattr(checkout, "materialise", materialise)
    patch.setattr(timing, "REPETITIONS", 5)
    patch.setattr(timing, "_cores_missing", lambda *_: 0.0)  # whatever else runs on the machine of the tests
    yield Workspace(tmp_path_factory.mktemp("home"))
    patch.undo()


def request(**wanted: Any) -> Request:
    return Request(**{"line": LINE, "groups": ("score",)} | wanted)


def rows_of(folder: Path, workspace: Workspace) -> dict[str, Row]:
    _, summaries = ablate.read(folder, workspace)
    return {summary.name: row for summary in summaries for row in summary.rows}


@pytest.fixture(scope="module")
def first(workspace: Workspace) -> Path:
    """Three experiments in four places, nothing of it faked."""
    return ablate.ablate(request(groups=("map", "standardization")), workspace)


def measured_at_once(_: Bench, variant: Variant, key: str, __: Any) -> Row:
    """What measuring gives, without a model."""
    value = Measured(0.9, 0.8, 1.0)
    config = variant.line.model_dump(mode="json")
    return Row(key=key, line=variant.line.line, seed=0, config=config, metrics={"image_auroc": value})


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "measure", measured_at_once)
    monkeypatch.setattr(Bench, "timed_here", lambda _, __, row: row)


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


def test_figures_are_those_of_the_model(first: Path, workspace: Workspace) -> None:
    """Scored by hand, judged by scikit-learn; nothing held out was fitted."""
    from csflow.detector.kinds import load_model
    from csflow.detector.model import score_stored
    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore
    from csflow.runs.find_or_fit import find_or_fit

    row = rows_of(first, workspace)["map: finest scale"]
    manifest = Bench(workspace).images(LINE)
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


def test_mlflow_has_the_variants_below_their_parent(first: Path, workspace: Workspace) -> None:
    plan = ablate.read_plan(first)
    parent = tracking.read_run(workspace, plan.run_id)
    nested = tracking.nested_runs(workspace, plan.run_id)
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
    assert tracking.list_runs(workspace, tracking.ablations_of("plates"), limit=50)
    artifacts = {item.path for item in tracking.client_of(workspace).list_artifacts(plan.run_id)}
    assert artifacts == {"table.csv", "table.md", "table.html", "pareto.png", "plan.json", "rows", "roc-map.png",
                         "roc-standardization.png"}  # fmt: skip
    assert (first / "table.html").read_text().count("data:image/png") == 3


def test_asked_again_nothing_is_measured_and_the_run_is_the_same(
    first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    before = ablate.read_plan(first)
    again = ablate.ablate(request(groups=("map", "standardization")), workspace)
    assert (again, ablate.read_plan(again).run_id) == (first, before.run_id)
    assert len(tracking.nested_runs(workspace, before.run_id)) == 3
    part = ablate.ablate(request(groups=("map",)), workspace)
    assert part != first
    nested = tracking.nested_runs(workspace, ablate.read_plan(part).run_id)
    assert sorted(run.metrics["image_auroc"] for run in nested) == sorted(
        row.metrics["image_auroc"].value for name, row in rows_of(first, workspace).items() if name.startswith("map")
    )
    assert ablate.newest("plates", workspace) == part


def breaking(measure_it: Callable[..., Row], error: BaseException) -> Callable[..., Row]:
    """Measuring that fails for the score ``nll``."""

    def broken(bench: Bench, variant: Any, key: str, publish: Any) -> Row:
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
        folder = ablate.ablate(asked, workspace)
    rows = rows_of(folder, workspace)
    assert {name: bool(row.error) for name, row in rows.items()} == {
        "score: mean z²": False, "score: exact likelihood": True, "score: maximum of the map": False,
    }  # fmt: skip
    assert "RuntimeError: no memory" in (folder / "table.html").read_text()
    failed = [r for r in tracking.nested_runs(workspace, ablate.read_plan(folder).run_id) if r.status == "FAILED"]
    assert [run.tags["error"] for run in failed] == ["no memory"]
    ablate.ablate(asked, workspace)
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
            ablate.ablate(asked, workspace)
    folder = ablate.newest("plates", workspace)
    assert list(rows_of(folder, workspace)) == ["score: mean z²"]
    assert "mean z²" in (folder / "table.md").read_text()
    assert len(list((folder / "rows").iterdir())) == 1, "no trace of the interrupted one"
    assert tracking.read_run(workspace, ablate.read_plan(folder).run_id).status == "KILLED"


def planned(workspace: Workspace, clamp: float) -> tuple[Path, dict[str, str]]:
    """An ablation that is only planned, and the keys of its three score variants by name."""
    folder = ablate.plan(request(overrides={"flow.clamp": clamp}), workspace)
    return folder, {entry.variant.line.scoring.score: entry.key for entry in ablate.read_plan(folder).entries}


def store(workspace: Workspace, key: str, error: str) -> None:
    row = Row(key=key, line="plates", seed=0, config={}, error=error)
    ablate.write_json(ablate._row_file(workspace, key), row.model_dump(mode="json"))


@pytest.mark.usefixtures("at_once")
def test_a_row_says_that_it_is_measured_until_it_is(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it says so still after the process was killed, when nobody can write any more."""
    folder, keys = planned(workspace, 3.1)
    seen = []

    def look(bench: Bench, variant: Any, key: str, publish: Any) -> Row:
        page, row = (folder / "table.md").read_text(), ablate._stored_row(workspace, key)
        seen.append((row is not None and row.error == ENDED, "Broken: mean z²: Measuring it has not come" in page))
        return measured_at_once(bench, variant, key, publish)

    monkeypatch.setattr(Bench, "measure", look)
    row = ablate.run_variant(folder, keys["mean"], workspace)
    assert seen == [(True, True)]
    assert not row.error
    assert ablate._stored_row(workspace, keys["mean"]) == row
    assert "Broken" not in (folder / "table.md").read_text()


@pytest.mark.usefixtures("at_once")
def test_what_ended_the_process_goes_last_and_everything_else_is_in_the_tables_by_then(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, keys = planned(workspace, 3.2)
    store(workspace, keys["mean"], ENDED)
    store(workspace, keys["nll"], "diverged")
    assert ablate.in_order(ablate.read_plan(folder), workspace) == [keys["max"], keys["nll"], keys["mean"]]
    order = []

    def look(bench: Bench, variant: Any, key: str, publish: Any) -> Row:
        order.append(key)
        if key == keys["mean"]:
            run = tracking.read_run(workspace, ablate.read_plan(folder).run_id)
            assert (run.metrics["variants"], run.metrics["failed"]) == (3, 1)
            assert (folder / "pareto.png").exists()
        return measured_at_once(bench, variant, key, publish)

    monkeypatch.setattr(Bench, "measure", look)
    asked = request(overrides={"flow.clamp": 3.2})
    assert ablate.ablate(asked, workspace) == folder
    assert order == [keys["max"], keys["nll"], keys["mean"]]


def test_of_several_that_ended_the_process_the_one_tried_longest_ago_is_first(workspace: Workspace) -> None:
    folder, keys = planned(workspace, 3.3)
    for age, key in enumerate((keys["max"], keys["mean"], keys["nll"])):
        store(workspace, key, ENDED)
        os.utime(ablate._row_file(workspace, key), (1000 - age, 1000 - age))
    assert ablate.in_order(ablate.read_plan(folder), workspace) == [keys["nll"], keys["mean"], keys["max"]]


def test_the_pipelines_loop_has_the_same_order(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, keys = planned(workspace, 3.4)
    store(workspace, keys["mean"], ENDED)
    monkeypatch.setenv("CSFLOW_HOME", str(workspace.root))
    asked = request(overrides={"flow.clamp": 3.4}).model_dump_json()
    assert ablate.plan_step(asked) == (str(folder), [keys["nll"], keys["max"], keys["mean"]])


@pytest.mark.parametrize("before", ["", "diverged", ENDED])
def test_sigterm_outside_a_training_gives_the_former_row_back(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    folder, keys = planned(workspace, 3.5 + 0.01 * len(before))
    if before:
        store(workspace, keys["mean"], before)
    former = ablate._stored_row(workspace, keys["mean"])
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Bench, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        ablate.run_variant(folder, keys["mean"], workspace)
    assert stopped.value.code == 143
    assert ablate._stored_row(workspace, keys["mean"]) == former
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.usefixtures("at_once")
def test_a_tracker_that_fails_once_costs_one_row(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, keys = planned(workspace, 3.6)
    nested = ablate._nested_run

    def failing(workspace: Workspace, plan: ablate.Plan, key: str) -> str:
        if key == keys["nll"]:
            raise RegistryError("the tracker is away")
        return nested(workspace, plan, key)

    with monkeypatch.context() as patch:
        patch.setattr(ablate, "_nested_run", failing)
        rows = [ablate.run_variant(folder, key, workspace) for key in keys.values()]
    assert [row.error for row in rows] == ["", "the tracker is away", ""]
    ablate.run_variant(folder, keys["nll"], workspace)
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "_nested_run", failing)
        assert not ablate.run_variant(folder, keys["nll"], workspace).error, "found, if not logged"


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


def test_a_row_timed_elsewhere_or_on_a_busy_machine_is_timed_again_and_no_more(
    first: Path, workspace: Workspace, no_times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(first, workspace)["map: all scales"]
    file = ablate._row_file(workspace, before.key)
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    for number, doubtful in enumerate((served_in(3.0, where="an abacus"), served_in(3.0, load=1.5))):
        file.write_text(before.model_copy(update={"timing": doubtful}).model_dump_json())
        fresh = served_in(111.0 + number)
        with monkeypatch.context() as patch:
            patch.setattr(measure, "time_served", lambda *_, fresh=fresh: fresh)
            row = ablate.run_variant(first, before.key, workspace)
        assert row == before.model_copy(update={"timing": fresh})
        assert ablate._stored_row(workspace, before.key) == row
        nested = tracking.nested_runs(workspace, ablate.read_plan(first).run_id)
        (run,) = (run for run in nested if run.tags["row"] == before.key)
        assert run.metrics["milliseconds"] == fresh.median_ms
        shutil.rmtree(no_times)
    monkeypatch.setattr(measure, "time_served", lambda *_: pytest.fail("it was timed here and in peace"))
    assert ablate.run_variant(first, before.key, workspace) == row


def test_asked_to_all_rows_are_timed_again(first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {row.key: row for row in rows_of(first, workspace).values()}
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("there is a row"))
    monkeypatch.setattr(measure, "time_served", lambda *_: served_in(77.0))
    assert ablate.ablate(request(groups=("map", "standardization")), workspace, retime=True) == first
    for row in rows_of(first, workspace).values():
        assert row == before[row.key].model_copy(update={"timing": served_in(77.0)})


def test_a_row_that_cannot_be_timed_again_stays(
    first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(first, workspace)["map: all scales"]
    monkeypatch.setattr(measure, "time_served", lambda *_: 1 / 0)
    assert ablate.run_variant(first, before.key, workspace, Bench(workspace, retime=True)) == before


def test_a_time_is_kept_unless_the_machine_was_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    judge: Any = SimpleNamespace(graph=["a graph"], manifest=SimpleNamespace(files=[]), save=lambda *_: None)
    backbone: Any = None
    bench = Bench(workspace)

    def timed(taken: Timing | None, bench: Bench) -> float:
        monkeypatch.setattr(measure, "time_served", lambda *_: taken or pytest.fail("there is a time"))
        return bench._timing(judge, backbone).median_ms

    assert timed(served_in(50, load=1.0), bench) == 50
    assert timed(None, bench) == 50, "once for all seeds"
    assert timed(served_in(60, load=2.0), Bench(workspace)) == 50, "both are too long"
    assert timed(served_in(55), Bench(workspace)) == 55, "in peace"
    assert timed(None, Bench(workspace)) == 55
    again = Bench(workspace, retime=True)
    assert timed(served_in(70, load=1.0), again) == 70
    assert timed(None, again) == 70


@pytest.mark.slow
def test_lines_fitted_together_share_one_model_and_are_judged_apart(workspace: Workspace) -> None:
    folder = ablate.ablate(request(groups=("joint",), joined=(OTHER,)), workspace)
    _, summaries = ablate.read(folder, workspace)
    rows = {(s.variant.line.line, s.variant.name): s.rows[0] for s in summaries}
    fitted = {key: row.images["fitted"] for key, row in rows.items()}
    both = fitted["plates", "alone"] + fitted["tiles", "alone"]
    assert fitted["plates", "2 lines together"] == fitted["tiles", "2 lines together"] == both
    assert rows["plates", "2 lines together"].key != rows["tiles", "2 lines together"].key
    histories = [json.loads(file.read_text()) for file in workspace.models.glob("*/training.json")]
    seconds = rows["plates", "2 lines together"].training_seconds
    assert seconds == rows["tiles", "2 lines together"].training_seconds, "fitted once"
    assert seconds in [sum(epoch["seconds"] for epoch in history) for history in histories]
    page = (folder / "table.md").read_text()
    assert "98.2 on MVTec AD (section 4.5, all 15 classes)" in page


@pytest.mark.slow
def test_few_shots_are_judged_on_the_same_held_out_images(workspace: Workspace) -> None:
    folder = ablate.ablate(request(groups=("shots",), shots=(4,), seeds=(0, 1)), workspace)
    _, (few, full) = ablate.read(folder, workspace)
    assert [row.images["fitted"] for row in few.rows] == [4, 4]
    assert {row.images["held_out"] for row in few.rows} == {full.rows[0].images["held_out"]}
    assert few.rows[0].metrics != few.rows[1].metrics, "other seeds draw other images"


@pytest.mark.slow
def test_equal_graphs_are_timed_once(first: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "time_served", lambda *_: pytest.fail("the graph was timed before"))
    folder = ablate.ablate(request(groups=("map",), overrides={"training.learning_rate": 1e-3}), workspace)
    assert all(row.timing is not None and not row.error for row in rows_of(folder, workspace).values())


def test_what_is_missing_is_said(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="csflow ablate nothing"):
        ablate.newest("nothing", workspace)
    with pytest.raises(DataError, match="no plan"):
        ablate.read_plan(tmp_path)
    with pytest.raises(DataError, match="no row"):
        ablate.read_plan(ablate.newest("plates", workspace)).variant("0" * 64)
