"""compare, why and lines on a real MLflow: one line with three runs, two versions and a champion."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from csflow.adapters.mlflow import database
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.runs import flat_params
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.mlflow.versions import Version
from csflow.cli.compare import RunColumn, _rows, compare_runs, differing_params
from csflow.cli.lines import lines
from csflow.cli.why import tell, why
from csflow.config import KINDS, LineConfig, load_line
from csflow.errors import ConfigError, DataError, NotRegisteredError, RegistryError
from csflow.runs.services import Services
from csflow.system import processes
from csflow.system.workspace import Workspace

YAML = "line: {name}\ndescription: {name} seen from above\ndata: {{repo: /data, path: {name}}}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``lines/`` and a workspace ``home`` in which the line ``tiles`` ran three times."""
    root = tmp_path_factory.mktemp("results")
    (root / "lines").mkdir()
    for name in ("tiles", "wood"):
        (root / "lines" / f"{name}.yaml").write_text(YAML.format(name=name))
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("CSFLOW_LINES", str(root / "lines"))
    workspace, line = Workspace(root / "home"), load_line("tiles")
    database.initialise(workspace)
    detector = root / "detector"
    detector.mkdir()
    (detector / "config.json").write_text("{}")
    first = trained(workspace, line, detector, "promoted", "first version, AUROC 0.97")
    Registry(workspace).set_alias("tiles", first)
    trained(workspace, line.with_seed(1), detector, "kept_worse", "loses 0.02 AUROC")
    other = flat_params(line.with_seed(2)) | {"gate.margin": "0.02"}
    broken = Tracker(workspace).start_run("tiles", params=other, tags={})
    with pytest.raises(DataError), Tracker(workspace).step(broken, "validate"):
        raise DataError("test/good/[1].png cannot be read")
    yield root
    patch.undo()


def trained(workspace: Workspace, line: LineConfig, detector: Path, decision: str, reason: str) -> int:
    """What the steps of one pipeline run leave behind."""
    seed = line.training.seed
    data = {"data_md5": "d41d.dir", "data_digest": "f" * 64, "git_rev": "1234567890abcdef" * 2}
    run_id = Tracker(workspace).start_run(line.line, params=flat_params(line), tags=data)
    figures = {"image_auroc": 0.97 - seed / 50, "image_auroc_low": 0.95, "image_auroc_high": 0.99, "threshold": 0.6125}
    counts = {"images_fit": 70.0, "images_calibrate": 20.0, "defects_found": 0.85}
    Tracker(workspace).log_metrics(run_id, figures | counts | {"seconds_train": 30.25, "seconds_evaluate": 2.0})
    tags = {"content_key": str(seed), "seed": seed, "backbone": "tf_efficientnet_lite0", **data, **figures}
    version = Registry(workspace).register(detector, line=line.line, run_id=run_id, tags=tags, example=b"")
    evidence = json.dumps({"difference": -0.0213, "images": 120})
    said = {"decision": decision, "decision_reason": reason, "decision_evidence": evidence}
    Registry(workspace).set_version_tags(line.line, version, said)
    Tracker(workspace).finish(run_id, decision)
    return version


@pytest.fixture
def root(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CSFLOW_HOME", str(shared / "home"))
    monkeypatch.setenv("CSFLOW_LINES", str(shared / "lines"))
    monkeypatch.setenv("COLUMNS", "160")
    return shared


def run(command: Any, *arguments: str) -> str:
    """Output of a command; its error is raised as in ``csflow.cli.main``."""
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def row(output: str, label: str) -> list[str]:
    """Cells of the table row that begins with ``label``."""
    (found,) = [line for line in output.splitlines() if line.strip("│ ").startswith(label)]
    return [cell.strip() for cell in found.strip("│").split("│")][1:]


@pytest.mark.usefixtures("root")
def test_compare_shows_runs_side_by_side_newest_first() -> None:
    output = run(compare_runs, "tiles")
    assert row(output, "outcome") == ["failed in validate", "kept_worse", "promoted"]
    assert row(output, "version") == ["-", "2", "1"]
    assert row(output, "alias") == ["-", "challenger", "champion"]
    assert row(output, "defects found") == ["-", "85.0 %", "85.0 %"]
    assert row(output, "image AUROC") == ["-", "0.9500", "0.9700"]
    assert row(output, "interval") == ["-", "0.950-0.990", "0.950-0.990"]
    assert row(output, "seconds")[1:] == ["32.2", "32.2"]
    assert row(output, "seed") == ["2", "1", "0"]
    assert row(output, "gate.margin") == ["0.02", "0.01", "0.01"]
    assert "features.image_size" not in output
    assert "failed in validate: test/good/[1].png cannot be read" in output


def test_compare_shows_settings_only_of_runs_that_read_them() -> None:
    line = LineConfig.model_validate({"line": "tiles", "data": {"path": "tiles"}})
    columns = [
        replace(COLUMN, params=dict(flat_params(line.model_copy(update={"detector": kind}))))
        for kind in ("csflow", "padim")
    ]
    rows = _rows(columns)
    assert rows["detector"] == ["csflow", "padim"]
    assert rows["epochs"] == [str(line.training.epochs), "-"]
    assert rows["hidden width"] == [str(line.flow.hidden), "-"]
    assert rows["seed"] == ["0", "0"]
    different = differing_params(columns)
    assert different["flow.blocks"] == [str(line.flow.blocks), "-"]
    assert different["padim.dimensions"] == ["-", str(line.padim.dimensions)]
    assert "patchcore.coreset" not in different


@pytest.mark.usefixtures("root")
def test_compare_as_json_and_limited() -> None:
    (newest,) = json.loads(run(compare_runs, "tiles", "--last", "1", "--json"))
    assert (newest["outcome"], newest["version"], newest["image_auroc"]) == ("failed in validate", None, None)
    assert newest["error"] == "test/good/[1].png cannot be read"


@pytest.mark.usefixtures("root")
def test_compare_suggests_the_line_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="Did you mean tiles"):
        run(compare_runs, "tilse")
    with pytest.raises(NotRegisteredError, match="'wood' never ran"):
        run(compare_runs, "wood")


@pytest.mark.usefixtures("root")
def test_why_tells_of_the_champion() -> None:
    output = run(why, "tiles")
    story = json.loads(run(why, "tiles", "--json"))
    assert story["version"] == 1
    assert story["data"] == {
        "repository": "/data", "folder": "tiles", "revision": "1234567890abcdef" * 2, "DVC md5": "d41d.dir",
        "digest": "f" * 64, "images": "20 calibrate, 70 fit",
    }  # fmt: skip
    assert story["run"]["image AUROC"] == "0.9700 (interval 0.9500 to 0.9900)"
    assert story["run"]["seconds"] == "evaluate 2.0, train 30.2"
    assert story["gate"] == {
        "decision": "promoted", "because": "first version, AUROC 0.97", "difference": "-0.0213", "images": "120",
    }  # fmt: skip
    assert story["now"] == {"alias": "champion", "champion": "version 1", "endpoint": "not running"}
    for chapter in ("data", "run", "gate", "now"):
        assert chapter.title() in output
        assert all(value in output for value in story[chapter].values())


@pytest.mark.usefixtures("root")
def test_why_tells_of_a_version_that_was_kept_out() -> None:
    story = json.loads(run(why, "tiles@2", "--json"))
    assert (story["gate"]["decision"], story["gate"]["because"]) == ("kept_worse", "loses 0.02 AUROC")
    assert story["now"]["alias"] == "challenger"
    assert story["run"]["seed"] == "1"


COLUMN = RunColumn("1" * 32, "2026-01-01", "promoted", 1, "champion", *[None] * 5, 1.0, "", {})

KINDS_SETTINGS = {
    "csflow": {"blocks", "hidden width", "epochs", "batch size", "learning rate", "seed"},
    "differnet": {"blocks", "hidden width", "epochs", "batch size", "learning rate", "seed"},
    "padim": {"dimensions", "regularization", "seed"},
    "patchcore": {"coreset", "largest", "neighbours", "seed"},
    "mahalanobis": set(),
    "nearest-neighbour": set(),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_why_names_the_kind_and_its_own_settings_alone(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of a line has the keys of every kind, so that runs can be compared."""
    services = Services.of(Workspace(root / "home"))
    version = services.registry.find_version("tiles", 1)
    line = load_line("tiles").model_copy(update={"detector": kind})
    ran = replace(services.tracker.read_run(version.run_id), params=flat_params(line))
    always = {"id", "started", "kind", "backbone", "image size", "seconds", "image AUROC", "threshold"}
    monkeypatch.setattr(Tracker, "read_run", lambda *_: ran)
    story = tell(services, version)
    assert story.run["kind"] == f"{KINDS[kind].title} (detector: {kind})"
    assert set(story.run) - always == KINDS_SETTINGS[kind]


def test_why_tells_of_a_version_whose_run_is_gone(root: Path) -> None:
    workspace = Workspace(root / "home")
    version = Registry(workspace).find_version("tiles", 1)
    orphan = replace(version, run_id="0" * 32, tags={"git_rev": "abc"})
    story = tell(Services.of(workspace), orphan)
    assert story.data == {"revision": "abc"}
    assert story.run == {"id": "0" * 32, "state": "no longer in MLflow"}
    assert "none yet" in story.gate["decision"]


@pytest.mark.usefixtures("root")
def test_why_names_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="Did you mean tiles"):
        run(why, "tilse")
    with pytest.raises(RegistryError, match="no version or alias '9'"):
        run(why, "tiles@9")
    with pytest.raises(NotRegisteredError, match="'wood' has no registered model"):
        run(why, "wood")


def test_lines_show_champion_and_endpoint(root: Path) -> None:
    bare = {"champion": None, "image_auroc": None, "threshold": None, "git_rev": None, "endpoint": None, "serves": None}
    tiles, wood = json.loads(run(lines, "--json"))
    assert (tiles["champion"], tiles["image_auroc"], tiles["threshold"], tiles["endpoint"]) == (1, 0.97, 0.6125, None)
    assert wood.items() >= bare.items()
    state = root / "home" / "endpoints" / "tiles.json"
    state.parent.mkdir(exist_ok=True)
    endpoint = {
        "line": "tiles", "url": "http://127.0.0.1:8123", "grpc_url": "127.0.0.1:8124", "pid": os.getpid(),
        "started": processes.start_time(os.getpid()), "digest": "d", "version": "2", "log": "log",
    }  # fmt: skip
    state.write_text(json.dumps(endpoint))
    try:
        assert "http://127.0.0.1:8123 (version 2: csflow reconcile tiles)" in run(lines)
        assert json.loads(run(why, "tiles", "--json"))["now"]["endpoint"] == "http://127.0.0.1:8123, serving version 2"
        state.write_text(json.dumps(endpoint | {"started": "another process of this number"}))
        assert json.loads(run(lines, "--json"))[0]["endpoint"] is None
    finally:
        state.unlink()


def test_lines_show_a_hold(root: Path) -> None:
    workspace = Workspace(root / "home")
    Registry(workspace).set_hold("tiles", {"user": "ada", "reason": ""})
    try:
        assert "1 (held)" in run(lines)
        assert json.loads(run(why, "tiles", "--json"))["now"]["hold"] == "user: ada"
    finally:
        Registry(workspace).set_hold("tiles", None)


def test_a_lost_champion_or_line_spoils_its_own_row_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deleted champion is not the dash of a line that never had one."""
    find = Registry.versions

    def deleted(self: Registry, line: str) -> list[Version]:
        return [
            replace(version, aliases=(), tags={**version.tags, "champion_since": "2026-01-01"})
            for version in find(self, line)
        ]

    def lost(self: Registry, line: str) -> list[Version]:
        if line == "wood":
            raise RegistryError("The registry has lost the line 'wood'. csflow restore brings it back.")
        return find(self, line)

    for versions, name, message in (
        (deleted, "tiles", "tiles has no champion although it had one"),
        (lost, "wood", "The registry has lost the line 'wood'"),
    ):
        monkeypatch.setattr(Registry, "versions", versions)
        output = run(lines)
        assert re.search(rf"{name} +│ broken", output)
        assert message in " ".join(output.split())
        found = {each["line"]: each["error"] for each in json.loads(run(lines, "--json"))}
        assert [other for other, error in found.items() if error] == [name]


def test_broken_yaml_spoils_its_own_row_only(root: Path) -> None:
    broken = root / "lines" / "zinc.yaml"
    broken.write_text("line: zinc\ncolour: grey\n")
    try:
        output = run(lines)
        assert "broken" in output
        assert "unknown key 'colour'" in output
        assert "0.9700" in output
    finally:
        broken.unlink()


@pytest.mark.usefixtures("root")
def test_lines_without_yaml_say_where_they_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path))
    with pytest.raises(ConfigError, match="Add one, or correct CSFLOW_LINES"):
        run(lines)


@pytest.mark.usefixtures("root")
def test_lines_of_a_fresh_workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CSFLOW_HOME", str(tmp_path / "home"))
    assert "not running" in run(lines)
    assert not (tmp_path / "home").exists()
