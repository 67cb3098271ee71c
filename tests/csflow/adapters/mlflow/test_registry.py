"""Registered models in a real MLflow on SQLite. One database for the module: making one takes seconds."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from csflow.adapters.mlflow import database
from csflow.adapters.mlflow.connection import client_of
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import LONGEST_TAG, model_name
from csflow.config import DataConfig, FeatureConfig, FlowConfig, LineConfig
from csflow.errors import ConfigError, DataError, NotRegisteredError, RegistryError
from csflow.system.files import sha256_tree
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.detector.detector import Detector


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path_factory.mktemp("registry") / "home")
    database.initialise(workspace)
    yield workspace
    patch.undo()


@pytest.fixture
def workspace(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shared


@pytest.fixture
def line(request: pytest.FixtureRequest) -> str:
    """A line of this test's own in the database they share."""
    return request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Files that no one will load."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def png(colour: tuple[int, int, int] = (120, 90, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 140), colour).save(buffer, "PNG")
    return buffer.getvalue()


def register(workspace: Workspace, line: str, detector: Path, key: str, **tags: object) -> int:
    run_id = Tracker(workspace).start_run(line, params={}, tags={})
    tags = {"content_key": key, "detector_digest": sha256_tree(detector), **tags}
    return Registry(workspace).register(detector, line=line, run_id=run_id, tags=tags, example=png())


def model_folder(workspace: Workspace, line: str) -> Path:
    (folder,) = (workspace.root / "mlartifacts" / line / "models").iterdir()
    return folder / "artifacts"


def test_version_carries_tags_run_and_time(workspace: Workspace, line: str, detector: Path) -> None:
    run_id = Tracker(workspace).start_run(line, params={}, tags={})
    tags = {"content_key": "k", "image_auroc": 0.9876, "seed": 3, "pixel_auroc": None}
    number = Registry(workspace).register(detector, line=line, run_id=run_id, tags=tags, example=png())
    (version,) = Registry(workspace).versions(line)
    assert (number, version.version, version.run_id, version.aliases) == (1, 1, run_id, ("challenger",))
    assert version.tags == {"content_key": "k", "image_auroc": "0.9876", "seed": "3"}
    assert (version.number("image_auroc"), version.number("pixel_auroc"), version.decision) == (0.9876, None, "")
    assert abs(datetime.now(UTC) - version.created) < timedelta(minutes=2)


def test_same_content_is_registered_once(workspace: Workspace, line: str, detector: Path) -> None:
    assert register(workspace, line, detector, "one") == 1
    assert register(workspace, line, detector, "two") == 2
    assert register(workspace, line, detector, "one") == 1
    assert [version.version for version in Registry(workspace).versions(line)] == [2, 1]


def test_same_content_registered_at_once_is_one_version(workspace: Workspace, line: str, detector: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: register(workspace, line, detector, "same"), range(3)))
    assert made == [1, 1, 1]


def test_model_is_code_and_plain_files(workspace: Workspace, line: str, detector: Path) -> None:
    from mlflow.models import Model

    register(workspace, line, detector, "k")
    folder = model_folder(workspace, line)
    model = Model.load(str(folder))
    assert model.flavors["python_function"]["model_code_path"].endswith("pyfunc_model.py")
    assert "python_model" not in model.flavors["python_function"]
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".joblib"}]
    assert model.signature is not None
    assert [(column.name, column.type.name) for column in model.signature.inputs] == [("image", "binary")]
    assert model.signature.outputs.input_names() == ["score", "p_value", "decision", "threshold"]
    assert base64.b64decode(json.loads((folder / "input_example.json").read_text())["data"][0][0]) == png()
    needed = (folder / "requirements.txt").read_text().splitlines()
    names = {requirement.partition("==")[0] for requirement in needed}
    assert {"csflow", "onnxruntime"} <= names
    assert not names & {"torch", "timm", "onnx", "safetensors"}


def test_run_and_model_page_link_to_the_version(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "k")
    client = client_of(workspace)
    (version,) = Registry(workspace).versions(line)
    (output,) = client.get_run(version.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": f"csflow-{line}", "version": 1}]


def test_alias_moves(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one")
    register(workspace, line, detector, "two")
    assert Registry(workspace).find_champion(line) is None
    Registry(workspace).set_alias(line, 1)
    Registry(workspace).set_alias(line, 2)
    champion = Registry(workspace).find_champion(line)
    assert champion is not None
    assert (champion.version, champion.is_champion) == (2, True)
    assert Registry(workspace).find_version(line, 1).aliases == ()


def test_versions_are_found_by_number_and_alias(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one")
    Registry(workspace).set_alias(line, 1)
    found = [Registry(workspace).find_version(line, which).version for which in (1, "1", "champion")]
    assert found == [1, 1, 1]
    with pytest.raises(RegistryError, match=r"no version or alias '7'. Versions: 1. Aliases: champion"):
        Registry(workspace).find_version(line, 7)
    with pytest.raises(RegistryError, match="no version or alias '7'"):
        Registry(workspace).set_alias(line, 7)


def test_line_without_champion(workspace: Workspace, line: str, detector: Path, tmp_path: Path) -> None:
    register(workspace, line, detector, "one")
    with pytest.raises(RegistryError, match=r"has no champion; none of its versions \(1\) was promoted"):
        Registry(workspace).download_detector(line, "champion", tmp_path)


def test_line_without_model(workspace: Workspace) -> None:
    for call in (Registry(workspace).versions, Registry(workspace).find_version):
        with pytest.raises(NotRegisteredError, match=r"'leather' has no registered model yet.*csflow run leather"):
            call("leather")
    assert Registry(workspace).find_champion("leather") is None
    assert Registry(workspace).get_hold("leather") is None


def test_workspace_without_registry_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(NotRegisteredError, match="Run a pipeline first"):
        Registry(Workspace(tmp_path / "home")).versions("tiles")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a'b", "Tiles", "", "x" * 60])
def test_impossible_line_names_are_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a line"):
        Registry(workspace).versions(name)


def test_tags_change_and_absent_ones_stay(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one", seed=0)
    Registry(workspace).set_version_tags(
        line, 1, {"decision": "kept_worse", "decision_reason": "x" * 9000, "seed": None}
    )
    version = Registry(workspace).find_version(line, 1)
    assert (version.decision, version.tags["seed"]) == ("kept_worse", "0")
    assert len(version.tags["decision_reason"]) == LONGEST_TAG


def test_hold_is_kept_until_released(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one")
    assert Registry(workspace).get_hold(line) is None
    Registry(workspace).set_hold(line, {"user": "ada", "reason": "scratches missed"})
    assert Registry(workspace).get_hold(line) == {"user": "ada", "reason": "scratches missed"}
    Registry(workspace).set_hold(line, None)
    Registry(workspace).set_hold(line, None)
    assert Registry(workspace).get_hold(line) is None


def test_download_is_a_copy_named_by_its_digest(
    workspace: Workspace, line: str, detector: Path, tmp_path: Path
) -> None:
    register(workspace, line, detector, "one")
    target = Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    assert target == tmp_path / "copies" / sha256_tree(detector)
    assert sha256_tree(target) == sha256_tree(detector)
    (target / "config.json").write_text("changed")
    stored = model_folder(workspace, line) / "artifacts" / detector.name / "config.json"
    assert stored.read_text() == "{}"
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [target.name]


def test_damaged_copy_is_fetched_again_and_a_sound_one_kept(
    workspace: Workspace, line: str, detector: Path, tmp_path: Path
) -> None:
    register(workspace, line, detector, "one")
    target = Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    (target / "config.json").write_text("damaged")
    assert Registry(workspace).download_detector(line, 1, tmp_path / "copies") == target
    assert (target / "config.json").read_text() == "{}"
    assert (tmp_path / "copies" / f"{target.name}.damaged" / "config.json").read_text() == "damaged"
    shutil.rmtree(target)
    target.write_text("a file in its place")
    assert Registry(workspace).download_detector(line, 1, tmp_path / "copies") == target
    assert (target / "config.json").read_text() == "{}"
    before = target.stat().st_ino
    Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    assert target.stat().st_ino == before


@pytest.mark.parametrize("loss", ["folder", "file", "changed", "killed before the alias"])
def test_a_version_without_its_files_gets_them_back_from_the_detector_it_was_made_of(
    workspace: Workspace, line: str, detector: Path, tmp_path: Path, loss: str
) -> None:
    """A run that was killed while it registered is finished by the next one, which has the same detector at hand."""
    register(workspace, line, detector, "one")
    stored = model_folder(workspace, line) / "artifacts" / detector.name
    if loss == "folder":
        shutil.rmtree(model_folder(workspace, line))
    elif loss == "file":
        (stored / "model.safetensors").unlink()
    elif loss == "changed":
        (stored / "config.json").write_text("changed")
    else:
        client_of(workspace).delete_registered_model_alias(model_name(line), "challenger")
    assert register(workspace, line, detector, "one") == 1
    (version,) = Registry(workspace).versions(line)
    assert version.aliases == ("challenger",)
    target = Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    assert sha256_tree(target) == sha256_tree(detector)
    (detector / "config.json").write_text('{"another": "detector"}')
    shutil.rmtree(model_folder(workspace, line))
    shutil.rmtree(target)
    register(workspace, line, detector, "one", detector_digest=version.tags["detector_digest"])
    with pytest.raises(RegistryError, match="cannot be read"):
        Registry(workspace).download_detector(line, 1, tmp_path / "copies")


def test_a_deleted_version_leaves_no_model_behind(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one")
    register(workspace, line, detector, "two")
    first = Registry(workspace).find_version(line, 1)
    experiment = client_of(workspace).get_run(first.run_id).info.experiment_id
    Registry(workspace).delete_version(first)
    (left,) = client_of(workspace).search_logged_models([experiment])
    assert left.source_run_id == Registry(workspace).find_version(line, 2).run_id


def test_changed_or_lost_store_is_noticed(workspace: Workspace, line: str, detector: Path, tmp_path: Path) -> None:
    register(workspace, line, detector, "one")
    stored = model_folder(workspace, line) / "artifacts" / detector.name
    (stored / "config.json").write_text("changed")
    with pytest.raises(RegistryError, match="changed or lost"):
        Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    (stored / "config.json").unlink()
    (stored / "model.safetensors").unlink()
    stored.rmdir()
    with pytest.raises(RegistryError, match=r"files of csflow-.* version 1 cannot be read"):
        Registry(workspace).download_detector(line, 1, tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir()) == []


# -- a detector that can be loaded ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_detector() -> Detector:
    """Real features, a flow that was never trained: what it says is arbitrary but always the same."""
    import numpy as np
    import torch

    from csflow.config import CalibrationConfig
    from csflow.detector.calibration import calibrate
    from csflow.detector.detector import Detector
    from csflow.detector.kinds.cross_scale_flow import FlowModel
    from csflow.features.backbone import load_backbone
    from csflow.flow.cross_scale import CrossScaleFlow

    line = LineConfig(
        line="small",
        data=DataConfig(path="small"),
        features=FeatureConfig(image_size=128),
        flow=FlowConfig(blocks=2, hidden=16, standardize=False),
    )
    torch.manual_seed(0)
    backbone = load_backbone(line.features)
    flow = CrossScaleFlow(line.flow, channels=backbone.channels, scales=3)
    scores = np.linspace(0.1, 100.0, 40)
    calibration = calibrate(scores, np.ones((40, 4, 4)) * scores[:, None, None], CalibrationConfig())
    return Detector(line, backbone, FlowModel(flow, line.scoring), calibration, {})


@pytest.mark.slow
def test_fresh_process_loads_the_champion(workspace: Workspace, real_detector: Detector, tmp_path: Path) -> None:
    from csflow.data.images import read_image

    real_detector.save(tmp_path / "detector")
    assert register(workspace, "small", tmp_path / "detector", "k") == 1
    Registry(workspace).set_alias("small", 1)
    images = [png((120, 90, 60)), png((10, 200, 10))]
    (tmp_path / "input.json").write_text(json.dumps([base64.b64encode(image).decode() for image in images]))
    code = (
        "import base64, json, sys, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/csflow-small@champion')\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "by_text = model.predict(pd.DataFrame({'image': texts}))\n"
        "by_bytes = model.predict(pd.DataFrame({'image': [base64.b64decode(t) for t in texts]}))\n"
        "assert by_text.equals(by_bytes)\n"
        "print(by_bytes.to_json(orient='records', double_precision=15))\n"
    )
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": workspace.tracking_uri,
        "PYTHONPATH": str(Path(database.__file__).parents[3]),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "input.json")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    for row, expected in zip(rows, real_detector.predict([read_image(image) for image in images]), strict=True):
        assert row["score"] == pytest.approx(expected.score, rel=1e-4)
        assert row["p_value"] == pytest.approx(expected.p_value)
        assert row["threshold"] == pytest.approx(expected.threshold)
        assert row["decision"] == expected.decision


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("not base64!", "Row 0: the text .* is not base64"), (3, "Row 0: column 'image' holds int"), (b"EPS?", "row 0")],
)
def test_loaded_model_names_the_row_without_an_image(value: object, complaint: str) -> None:
    import pandas as pd

    from csflow.adapters.mlflow.pyfunc_model import LoadedDetector

    model = LoadedDetector()
    model.engine = SimpleNamespace(line=LineConfig(line="tiles", data=DataConfig(path="data/tiles")))  # type: ignore[assignment]
    with pytest.raises(DataError, match=complaint):
        model.predict(None, pd.DataFrame({"image": [value]}))


def test_the_newest_version_is_challenger_until_it_is_champion(workspace: Workspace, line: str, detector: Path) -> None:
    def aliases() -> dict[int, tuple[str, ...]]:
        return {version.version: version.aliases for version in Registry(workspace).versions(line)}

    register(workspace, line, detector, "one")
    assert aliases() == {1: ("challenger",)}
    Registry(workspace).set_alias(line, 1)
    assert aliases() == {1: ("champion",)}
    register(workspace, line, detector, "two")
    register(workspace, line, detector, "one")
    assert aliases() == {1: ("champion",), 2: ("challenger",)}
    assert Registry(workspace).find_version(line, "challenger").version == 2
    register(workspace, line, detector, "three")
    Registry(workspace).set_alias(line, 1)
    assert aliases() == {1: ("champion",), 2: (), 3: ("challenger",)}


def test_model_and_version_have_descriptions(workspace: Workspace, line: str, detector: Path) -> None:
    register(workspace, line, detector, "one")
    Registry(workspace).describe(line, text="The *line*.")
    Registry(workspace).describe(line, version=1, text="The **version**.")
    client = client_of(workspace)
    assert client.get_registered_model(f"csflow-{line}").description == "The *line*."
    assert client.get_model_version(f"csflow-{line}", "1").description == "The **version**."


def test_digests_are_out_of_sight_and_those_of_older_versions_are_read(
    workspace: Workspace, line: str, detector: Path
) -> None:
    register(workspace, line, detector, "one")
    client = client_of(workspace)
    stored = client.get_model_version(f"csflow-{line}", "1").tags
    assert not {"content_key", "detector_digest"} & stored.keys()
    assert [name for name in stored if name.startswith("mlflow.")] == ["mlflow.csflow"]
    Registry(workspace).set_version_tags(line, 1, {"gate_settings": "{}", "decision": "promoted"})
    tags = Registry(workspace).find_version(line, 1).tags
    assert (tags["content_key"], tags["gate_settings"], tags["decision"]) == ("one", "{}", "promoted")
    client.delete_model_version_tag(f"csflow-{line}", "1", "mlflow.csflow")
    client.set_model_version_tag(f"csflow-{line}", "1", "content_key", "one")  # as csflow 0.5 stored it
    assert register(workspace, line, detector, "one") == 1
