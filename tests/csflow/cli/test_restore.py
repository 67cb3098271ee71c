"""``csflow restore`` lists backups, puts one back, and lets a person go on without what was lost; the doctor looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from csflow.adapters.mlflow.backups import back_up
from csflow.adapters.mlflow.connection import check_registry
from csflow.adapters.mlflow.database import initialise
from csflow.adapters.mlflow.registry import Registry
from csflow.cli.restore import restore_registry
from csflow.errors import RegistryError, UsageError
from csflow.release.lost import require_history
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from tests.csflow.adapters.mlflow.test_database import add_version, publish, truncate

app = typer.Typer()
app.command()(restore_registry)


def run(*words: str) -> str:
    return CliRunner().invoke(app, words, catch_exceptions=False).output


@pytest.fixture
def workspace(home: Path) -> Workspace:
    made = Workspace(home)
    initialise(made)
    add_version(home / "mlflow.db", 1, champion=True)
    return made


def test_a_truncated_database_comes_back(workspace: Workspace) -> None:
    path = workspace.root / "mlflow.db"
    assert "No backups" in run()
    back_up(path)
    assert "tiles: 1 version, champion 1" in run()
    assert [row["holds"] for row in json.loads(run("--json"))] == ["tiles: 1 version, champion 1"]
    assert check_registry(workspace).endswith("mlflow.db, 1 backup")
    truncate(path)
    with pytest.raises(RegistryError, match="csflow restore newest"):
        check_registry(workspace)
    output = run("newest")
    assert "champion 1" in output
    assert ".replaced" in output
    assert Registry(workspace).find_version("tiles").version == 1


def test_an_older_backup_says_what_is_newer_and_a_person_accepts_it(workspace: Workspace) -> None:
    back_up(workspace.root / "mlflow.db")
    publish(workspace)
    assert "tiles: 1 published or served detectors are newer" in run("newest")
    services = Services.of(workspace)
    with pytest.raises(RegistryError, match="--start-over tiles"):
        require_history(services, "tiles", services.registry.versions("tiles"))
    assert json.loads(run("--start-over", "tiles", "--json")) == {"tiles": 1}
    require_history(services, "tiles", services.registry.versions("tiles"))


def test_wrong_uses_are_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no backup 'newest'"):
        run("newest")
    with pytest.raises(UsageError, match="Give one backup"):
        run("newest", "tiles")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="does not back up"):
        run()
