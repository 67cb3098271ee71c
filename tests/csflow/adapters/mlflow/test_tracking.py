"""Runs in a real MLflow on SQLite. One database for the module: making one takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.adapters.mlflow import connection
from csflow.adapters.mlflow.runs import flat_params
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import LONGEST_TAG
from csflow.config import DataConfig, LineConfig
from csflow.errors import DataError, NotRegisteredError, RegistryError
from csflow.flow.checkpoint import EpochResult
from csflow.system.workspace import Workspace

FirstRuns = tuple[Workspace, list[subprocess.CompletedProcess[str]]]

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))

# What two nightly retrains on a fresh machine do at the same moment.
FIRST_RUN = """
import sys
from pathlib import Path
from csflow.adapters.mlflow.tracking import Tracker
from csflow.system.workspace import Workspace
workspace = Workspace(Path(sys.argv[1]))
print(Tracker(workspace).start_run("tiles", params={"seed": "0"}, tags={}))
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None, "MLflow would call home"
"""


@pytest.fixture(scope="module")
def first_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Workspace, list[subprocess.CompletedProcess[str]]]]:
    """A workspace whose database two processes made at once, and what those two said."""
    root = tmp_path_factory.mktemp("tracking")
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    silent = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"}
    environment = {key: value for key, value in os.environ.items() if key not in silent}
    command = [sys.executable, "-c", FIRST_RUN, str(root / "home")]
    processes = [
        subprocess.Popen(
            command, env=environment, cwd=Path(connection.__file__).parents[3], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=180)
        ended.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    yield Workspace(root / "home"), ended
    patch.undo()


@pytest.fixture
def workspace(first_runs: FirstRuns, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return first_runs[0]


@pytest.fixture
def run_id(workspace: Workspace) -> str:
    return Tracker(workspace).start_run("tiles", params=flat_params(LINE), tags={"data_md5": "d41d.dir"})


def test_two_first_runs_at_once_both_succeed_and_are_silent(
    first_runs: FirstRuns,
) -> None:
    workspace, (one, two) = first_runs
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert (one.stderr, two.stderr) == ("", "")
    found = {run.run_id for run in Tracker(workspace).list_runs("tiles", limit=100)}
    assert {one.stdout.strip(), two.stdout.strip()} <= found
    assert one.stdout != two.stdout


def test_a_run_is_open_until_finished(workspace: Workspace, run_id: str) -> None:
    assert Tracker(workspace).read_run(run_id).outcome == "running"
    Tracker(workspace).finish(run_id, "promoted")
    run = Tracker(workspace).read_run(run_id)
    assert (run.status, run.outcome, run.tags["data_md5"]) == ("FINISHED", "promoted", "d41d.dir")


def test_every_run_has_the_same_parameter_names() -> None:
    usual = flat_params(LINE)
    bare = flat_params(LINE.model_copy(update={"calibration": "none"}))
    assert usual.keys() == bare.keys()
    assert (usual["calibration.alpha"], bare["calibration.alpha"]) == ("0.05", "none")
    assert usual["training.betas"] == "[0.5, 0.9]"


def test_parameters_are_those_of_the_line(workspace: Workspace, run_id: str) -> None:
    assert Tracker(workspace).read_run(run_id).params == flat_params(LINE)


def test_step_logs_its_seconds_and_memory(workspace: Workspace, run_id: str) -> None:
    with Tracker(workspace).step(run_id, "train"):
        pass
    with Tracker(workspace).step(run_id, "evaluate"):
        pass
    run = Tracker(workspace).read_run(run_id)
    steps = ("train", "evaluate")
    assert run.metrics.keys() == {f"{what}_{step}" for what in ("seconds", "peak_memory_mb") for step in steps}
    assert run.seconds == pytest.approx(sum(run.metrics[f"seconds_{step}"] for step in steps))
    assert 20 < run.metrics["peak_memory_mb_train"] <= run.metrics["peak_memory_mb_evaluate"] < 50_000
    assert run.status == "RUNNING"


def test_failed_step_marks_the_run_and_a_retry_takes_the_mark_off(workspace: Workspace, run_id: str) -> None:
    with pytest.raises(DataError, match="3 images"), Tracker(workspace).step(run_id, "validate"):
        raise DataError("3 images cannot be read")
    failed = Tracker(workspace).read_run(run_id)
    assert (failed.status, failed.outcome) == ("FAILED", "failed in validate")
    assert failed.tags["error"] == "3 images cannot be read"
    assert "seconds_validate" not in failed.metrics
    with Tracker(workspace).step(run_id, "validate"):
        assert Tracker(workspace).read_run(run_id).outcome == "running"
    assert not {"error", "failed_step"} & Tracker(workspace).read_run(run_id).tags.keys()


def test_interrupted_step_is_killed_not_failed(workspace: Workspace, run_id: str) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker(workspace).step(run_id, "train"):
        raise KeyboardInterrupt
    assert Tracker(workspace).read_run(run_id).outcome == "killed in train"


def test_steps_error_is_kept_when_the_tracker_fails_too(
    workspace: Workspace, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with pytest.raises(DataError), Tracker(workspace).step(run_id, "train"):  # noqa: PT012
        monkeypatch.setattr(Tracker, "_log", gone)
        raise DataError("the one that matters")


def test_curves_hold_every_epoch(workspace: Workspace, run_id: str) -> None:
    with Tracker(workspace).epoch_log(run_id, every=1e9) as on_epoch:
        for epoch in range(1, 301):
            on_epoch(EpochResult(epoch, 300, -epoch / 10, 1.0, 0.5, 2e-4))
    history = connection.client_of(workspace).get_metric_history(run_id, "curves/nll")
    assert [(point.step, point.value) for point in history] == [(epoch, -epoch / 10) for epoch in range(1, 301)]
    assert Tracker(workspace).read_run(run_id).metrics == {
        "train_nll": -30.0, "train_grad_norm": 1.0, "train_epoch_seconds": 0.5, "train_learning_rate": 2e-4,
    }  # fmt: skip


def test_curve_of_a_training_that_breaks_off_is_kept(workspace: Workspace, run_id: str) -> None:
    with pytest.raises(RuntimeError), Tracker(workspace).epoch_log(run_id, every=1e9) as on_epoch:  # noqa: PT012
        on_epoch(EpochResult(1, 9, 0.5, 1.0, 0.5, 2e-4))
        raise RuntimeError("diverged")
    assert Tracker(workspace).read_run(run_id).metrics["train_nll"] == 0.5


def test_epochs_appear_while_training_goes_on(workspace: Workspace, run_id: str) -> None:
    with Tracker(workspace).epoch_log(run_id, every=0.0) as on_epoch:
        on_epoch(EpochResult(1, 9, 0.5, 1.0, 0.5, 2e-4))
        assert Tracker(workspace).read_run(run_id).metrics["train_nll"] == 0.5


def test_absent_figures_and_tags_are_left_out(workspace: Workspace, run_id: str) -> None:
    Tracker(workspace).log_metrics(run_id, {"image_auroc": 0.98, "pixel_auroc": None})
    Tracker(workspace).set_tags(run_id, {"note": None, "long": "x" * 9000})
    run = Tracker(workspace).read_run(run_id)
    assert run.metrics == {"image_auroc": 0.98}
    assert "note" not in run.tags
    assert len(run.tags["long"]) == LONGEST_TAG


def test_dataset_and_artifacts_are_attached(workspace: Workspace, run_id: str, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,line,group\ntrain/good/1.png,tiles,\n")
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "page.html").write_text("<p>fine</p>")
    Tracker(workspace).log_dataset(run_id, name="tiles", digest="a" * 64, manifest=manifest, source="/data@1f2e:tiles")
    Tracker(workspace).log_artifact(run_id, tmp_path / "quality")
    client = connection.client_of(workspace)
    (entry,) = client.get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("tiles", "a" * 36)
    assert json.loads(entry.dataset.source) == {"uri": "/data@1f2e:tiles"}
    assert json.loads(entry.dataset.profile)["num_rows"] == 1
    stored = workspace.root / "mlartifacts" / "tiles" / run_id / "artifacts"
    assert (stored / "data" / "manifest.csv").read_text() == manifest.read_text()
    assert (stored / "quality" / "page.html").exists()


def test_runs_are_listed_newest_first(workspace: Workspace) -> None:
    made = [Tracker(workspace).start_run("wood", params={}, tags={}) for _ in range(3)]
    assert [run.run_id for run in Tracker(workspace).list_runs("wood", limit=2)] == made[:0:-1]


def test_unknown_line_and_run_are_named(workspace: Workspace) -> None:
    with pytest.raises(NotRegisteredError, match="'leather' never ran"):
        Tracker(workspace).list_runs("leather", limit=5)
    with pytest.raises(RegistryError, match="no run 'nobody'"):
        Tracker(workspace).read_run("nobody")


def test_reading_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(NotRegisteredError, match="Run a pipeline first"):
        Tracker(Workspace(tmp_path / "home")).list_runs("tiles", limit=5)
    assert list(tmp_path.iterdir()) == []


def test_server_that_does_not_answer_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"No MLflow server answers at http://127\.0\.0\.1:9"):
        Tracker(Workspace(tmp_path)).list_runs("tiles", limit=5)
