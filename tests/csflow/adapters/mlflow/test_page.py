"""What MLflow's page shows of runs and versions, and that csflow reads it back, also from older versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.adapters.mlflow import page
from csflow.adapters.mlflow.connection import client_of, initialise
from csflow.adapters.mlflow.curves import Curves, Point
from csflow.adapters.mlflow.runs import flat_params
from csflow.adapters.mlflow.tracking import Tracker
from csflow.config import DataConfig, LineConfig
from csflow.flow.training import EpochResult
from csflow.system.workspace import Workspace


def line(seed: int = 0) -> LineConfig:
    return LineConfig(line="tiles", data=DataConfig(path="tiles")).with_seed(seed)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = Workspace(tmp_path_factory.mktemp("page") / "home")
        initialise(made)
        for seed in (0, 1):
            run = Tracker(made).start_run(
                "tiles", params=flat_params(line(seed)), tags={"content_key": "k" * 64, "git_rev": "abc"}
            )
            Tracker(made).log_metrics(run, {"image_auroc": 0.9, "seconds_train": 2.0, "images_fit": 60})
        Tracker(made).describe_line("tiles", "Detects **defects**.")
    return made


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    "name",
    ["seconds_train", "seconds_cache_features", "images_fit", "train_nll", "image_auroc", "peak_memory_mb_extract"],
)
def test_a_metric_is_read_under_the_name_it_was_logged_by(name: str) -> None:
    assert page.read_metrics({page.stored_metric(name): 1.0}) == {name: 1.0}
    assert page.read_metrics({name: 1.0}) == {name: 1.0}, "as csflow 0.5 stored it"


def test_single_values_are_grouped(workspace: Workspace) -> None:
    (run, _) = client_of(workspace).search_runs([experiment(workspace)])
    assert {"seconds/train", "images/fit", "accuracy/image_auroc"} == set(run.data.metrics)


def test_tags_of_machines_are_hidden_and_still_read(workspace: Workspace) -> None:
    (run, _) = client_of(workspace).search_runs([experiment(workspace)])
    shown = {name for name in run.data.tags if not name.startswith("mlflow.")}
    assert shown == {"git_rev"}
    assert Tracker(workspace).read_run(run.info.run_id).tags == {"content_key": "k" * 64, "git_rev": "abc"}


def test_tags_of_older_versions_are_read_and_newer_ones_win() -> None:
    old = {"content_key": "old", "decision": "promoted", "mlflow.user": "ada"}
    assert page.read_tags(old) == {"content_key": "old", "decision": "promoted"}
    assert page.read_tags(old | page.stored_tags({"content_key": "new"}))["content_key"] == "new"


def test_who_and_how_are_in_the_columns_that_the_page_has(workspace: Workspace) -> None:
    (run, _) = client_of(workspace).search_runs([experiment(workspace)])
    assert run.info.user_id == run.data.tags["mlflow.user"] == page.user()
    assert run.data.tags["mlflow.source.name"] == "csflow run tiles"
    ablation = Tracker(workspace).start_run("tiles.ablations", params={}, tags={})
    assert client_of(workspace).get_run(ablation).data.tags["mlflow.source.name"] == "csflow ablate tiles"
    client_of(workspace).delete_experiment(client_of(workspace).get_run(ablation).info.experiment_id)


def test_names_of_runs_differ_in_what_the_table_shows(workspace: Workspace) -> None:
    first = [run.info.run_name[:14] for run in client_of(workspace).search_runs([experiment(workspace)])]
    assert all(name[2] == "-" and name[8] == ":" for name in first), first


def test_the_experiment_is_one_of_trained_models_and_described(workspace: Workspace) -> None:
    tags = client_of(workspace).get_experiment(experiment(workspace)).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags[page.NOTE] == "Detects **defects**."


def test_the_comparison_opens_on_what_people_compare(workspace: Workspace) -> None:
    tags = client_of(workspace).get_experiment(experiment(workspace)).tags
    columns = json.loads(tags["mlflow.sharedViewState.csflow"])["selectedColumns"]
    assert columns[:3] == [
        "attributes.`Duration`",
        "metrics.`accuracy/image_auroc`",
        "metrics.`accuracy/defects_found`",
    ]
    assert columns[-1] == "params.`training.seed`", "the only parameter that differs"
    assert "params.`training.epochs`" not in columns


def test_there_is_no_empty_default_experiment(workspace: Workspace) -> None:
    assert [found.name for found in client_of(workspace).search_experiments()] == ["tiles"]


def test_a_default_experiment_with_runs_stays(tmp_path: Path) -> None:
    made = Workspace(tmp_path / "home")
    initialise(made)
    client_of(made).create_run("0")
    Tracker(made).start_run("tiles", params={}, tags={})
    assert {found.name for found in client_of(made).search_experiments()} == {"Default", "tiles"}


def test_addresses_open_the_view_of_trained_models() -> None:
    address = page.runs_address("http://127.0.0.1:5000/", "3")
    assert (
        address == "http://127.0.0.1:5000/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=csflow"
    )
    link = page.artifact_link("3", "abc", "report/report.html")
    assert link == "#/experiments/3/runs/abc/artifacts/report/report.html?workflowType=machine_learning"


def test_the_page_of_the_installed_mlflow_knows_what_we_set() -> None:
    """Parameter, tags and kind are read by MLflow's page itself; a new MLflow may have renamed them."""
    import mlflow.server

    scripts = (Path(mlflow.server.__file__).parent / "js/build/static/js").glob("*.js")
    text = "".join(script.read_text(encoding="utf-8", errors="replace") for script in scripts)
    for word in ("workflowType", "machine_learning", "viewStateShareKey", "mlflow.sharedViewState.",
                 "selectedColumns", "mlflow.experimentKind", "custom_model_development",
                 "mlflow.note.content"):  # fmt: skip
        assert word in text, word


def test_epochs_are_written_together() -> None:
    written: list[list[Point]] = []
    curves = Curves(lambda points: written.append(list(points)), every=1000.0)
    for epoch in (1, 2, 3):
        held_out = 5.0 if epoch == 3 else None
        curves.add(EpochResult(epoch, 3, nll=1.0, grad_norm=2.0, seconds=3.0, learning_rate=4.0, held_out_nll=held_out))
    assert written == []
    curves.flush()
    assert [(point.metric, point.epoch) for point in written[0]][:4] == [
        ("curves/nll", 1), ("curves/grad_norm", 1), ("curves/epoch_seconds", 1), ("curves/learning_rate", 1),
    ]  # fmt: skip
    assert len(written[0]) == 13
    assert [(point.metric, point.epoch) for point in written[0]][-1] == ("curves/held_out_nll", 3)


def experiment(workspace: Workspace) -> str:
    found = client_of(workspace).get_experiment_by_name("tiles")
    assert found is not None
    return str(found.experiment_id)
