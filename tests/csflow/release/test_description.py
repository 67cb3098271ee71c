"""What people read about a version in MLflow, made by the step *register* and by the decision, in a real MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.mlflow.connection import client_of
from csflow.adapters.mlflow.runs import flat_params
from csflow.config import DataConfig, LineConfig
from csflow.data.manifest import build_manifest
from csflow.release.description import describe_version, read_facts, stamp_report
from csflow.reporting.model_card import Decision
from csflow.reporting.report import write_report
from csflow.runs.context import RunContext
from csflow.runs.services import Services
from csflow.steps.register import register
from csflow.system.files import sha256_file
from csflow.system.workspace import Workspace
from tests.csflow.reporting.test_report import calibration, evaluation

pytestmark = pytest.mark.slow

LINE = LineConfig(line="tiles", description="Magnetic tiles", data=DataConfig(path="data/tiles"))
DIGESTS = {"content_key": "c" * 64, "data_md5": "d.dir", "data_digest": "e" * 64, "git_rev": "f" * 40}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Services, RunContext]:
    """Services and context of a run whose version was just registered."""
    root = tmp_path_factory.mktemp("described")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        services = Services.of(Workspace(root / "home"))
        run_id = services.tracker.start_run("tiles", params=flat_params(LINE), tags=DIGESTS)
        report = services.workspace.runs / run_id / "report"
        write_report(report, evaluation())
        services.tracker.log_artifact(run_id, report)
        services.tracker.log_metrics(run_id, {"image_auroc": 0.95, "threshold": 0.9})
        (root / "images/train/good").mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "images/train/good/0.png")
        build_manifest(root / "images", line="tiles", roles=LINE.roles).save(root / "manifest.csv")
        context = RunContext(
            line=LINE,
            run_id=run_id,
            data_root=str(root / "images"),
            unchanged=False,
            manifest_sha256=sha256_file(root / "manifest.csv"),
            **DIGESTS,
        )
        context.save(root / "context.json")
        (root / "detector").mkdir()
        (root / "detector/calibration.json").write_text(json.dumps(calibration().to_json()))
        patch.setattr("csflow.detector.graph_file.check_directory", lambda directory: None)  # there is no graph here
        assert register(services, root / "context.json", root / "manifest.csv", root / "detector") == 1
        return services, context


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def described(services: Services) -> str:
    return str(client_of(services.workspace).get_model_version("csflow-tiles", "1").description)


def test_a_new_version_has_a_model_card_and_few_tags(registered: tuple[Services, RunContext]) -> None:
    services, context = registered
    found = evaluation().detections
    assert found is not None
    assert described(services).startswith(f"Defects found at the threshold: **{found.text}**.")
    (version,) = services.registry.versions("tiles")
    assert version.tags["defects_found"] == found.text
    low, high = version.number("image_auroc_low"), version.number("image_auroc_high")
    assert [low, high] == json.loads(json.dumps(read_facts(services, context.run_id)["image_auroc_interval"]))
    stored = client_of(services.workspace).get_model_version("csflow-tiles", "1").tags
    shown = {name for name in stored if not name.startswith("mlflow.")}
    assert shown == {"git_rev", "image_auroc", "defects_found", "threshold"}
    assert "Magnetic tiles" in str(client_of(services.workspace).get_registered_model("csflow-tiles").description)


def test_all_digests_are_in_one_file_of_the_run(registered: tuple[Services, RunContext], tmp_path: Path) -> None:
    services, context = registered
    digests = json.loads(services.tracker.fetch_artifact(context.run_id, "digests.json", tmp_path).read_text())
    assert {name: digests[name] for name in DIGESTS} == DIGESTS
    assert len(digests["detector_digest"]) == 64


def test_the_decision_joins_card_run_and_report(registered: tuple[Services, RunContext], tmp_path: Path) -> None:
    services, context = registered
    decision = Decision("kept_worse", "It loses 0.02 AUROC.")
    describe_version(services, context, 1, read_facts(services, context.run_id), decision)
    stamp_report(services, context.run_id, 1, decision)
    assert "**The gate: kept worse.** It loses 0.02 AUROC." in described(services)
    note = client_of(services.workspace).get_run(context.run_id).data.tags["mlflow.note.content"]
    assert note == described(services)
    assert f"#/experiments/{services.tracker.read_run(context.run_id).experiment}/runs/{context.run_id}/" in note
    for page in (
        services.tracker.fetch_artifact(context.run_id, "report/report.html", tmp_path),
        services.workspace.runs / context.run_id / "report/report.html",
    ):
        assert "Version 1: kept worse.</b> It loses 0.02 AUROC." in page.read_text()


def test_a_run_without_a_report_is_described_all_the_same(registered: tuple[Services, RunContext]) -> None:
    services, context = registered
    run_id = services.tracker.start_run("tiles", params={}, tags={})
    assert read_facts(services, run_id) == {}
    stamp_report(services, run_id, 1, Decision("promoted", "better"))
    describe_version(services, RunContext(**{**vars(context), "run_id": run_id}), 1, {}, Decision("promoted", "better"))
    assert "not measured" in described(services)
