"""A run whose command was killed is closed with what is known; one that may live stays open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.runs.ownership import OWNER, close_killed_runs, owner_tags, this_command
from csflow.runs.services import Services
from csflow.system.files import sha256_tree
from csflow.system.workspace import Workspace

COMMAND = """
import os, sys, time
from pathlib import Path
from csflow.runs.ownership import this_command
from csflow.system.workspace import Workspace
print(this_command(Workspace(Path(sys.argv[1]))), flush=True)
time.sleep(60)
"""


@pytest.fixture
def services(home: Path) -> Services:
    return Services.of(Workspace(home))


@pytest.fixture
def command(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another command that works in the same workspace, and its description."""
    with subprocess.Popen([sys.executable, "-c", COMMAND, home], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_only_the_run_of_a_killed_command_is_closed(
    services: Services, command: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, owner = command
    tracker = services.tracker

    def opened(owner: str | None) -> str:
        monkeypatch.delenv(OWNER, raising=False) if owner is None else monkeypatch.setenv(OWNER, owner)
        return tracker.start_run("tiles", params={}, tags=owner_tags())

    killed = opened(owner)
    tracker.log_metrics(killed, {"seconds_ingest": 1.0, "seconds_train": 2.0})
    others = {
        "this command": opened(this_command(services.workspace)),
        "another machine": opened(json.dumps(json.loads(owner) | {"host": "elsewhere"})),
        "another workspace": opened(json.dumps(json.loads(owner) | {"workspace": "/elsewhere"})),
        "a cluster": opened(None),
        "another csflow": opened("who knows"),
    }
    close_killed_runs(services, "tiles")
    assert tracker.read_run(killed).status == "RUNNING", "its command lives"
    process.kill()
    process.wait()
    time.sleep(0.1)
    close_killed_runs(services, "tiles")
    run = tracker.read_run(killed)
    assert run.status == "KILLED"
    assert "killed after ingest, train" in run.tags["error"]
    assert {name: tracker.read_run(run_id).status for name, run_id in others.items()} == dict.fromkeys(
        others, "RUNNING"
    )


def test_it_ended_when_it_was_last_heard_of(
    services: Services, command: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, owner = command
    monkeypatch.setenv(OWNER, owner)
    killed = services.tracker.start_run("tiles", params={}, tags=owner_tags())
    services.tracker.log_metrics(killed, {"seconds_ingest": 1.0})
    heard = time.time()
    process.kill()
    process.wait()
    monkeypatch.setenv(OWNER, this_command(services.workspace))
    time.sleep(1.0)
    close_killed_runs(services, "tiles")
    from csflow.adapters.mlflow.connection import client_of

    ended = client_of(services.workspace).get_run(killed).info.end_time / 1000
    assert abs(ended - heard) < 0.9


def test_a_model_that_was_only_half_stored_goes_with_its_run(
    services: Services, command: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from csflow.adapters.mlflow.connection import client_of

    process, owner = command
    monkeypatch.setenv(OWNER, owner)
    run_id = services.tracker.start_run("tiles", params={}, tags=owner_tags())
    client = client_of(services.workspace)
    experiment = client.get_run(run_id).info.experiment_id
    half = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("half")
    client.log_model_artifacts(half.model_id, str(tmp_path / "model"))
    stored = list((services.workspace.root / "mlartifacts").rglob("MLmodel"))
    assert stored
    process.kill()
    process.wait()
    monkeypatch.setenv(OWNER, this_command(services.workspace))
    time.sleep(0.1)
    close_killed_runs(services, "tiles")
    assert not any(path.exists() for path in stored)
    assert list(client.search_logged_models([experiment])) == []


def test_a_model_that_was_registered_stays_although_its_run_was_killed(
    services: Services, command: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLflow's database does not say which model a version is of, so that all of them looked half stored."""
    process, owner = command
    monkeypatch.setenv(OWNER, owner)
    detector = tmp_path / "detector"
    detector.mkdir()
    (detector / "config.json").write_text("{}")
    run_id = services.tracker.start_run("tiles", params={}, tags=owner_tags())
    tags = {"content_key": "k", "detector_digest": sha256_tree(detector)}
    services.registry.register(detector, line="tiles", run_id=run_id, tags=tags, example=b"")
    process.kill()
    process.wait()
    monkeypatch.setenv(OWNER, this_command(services.workspace))
    time.sleep(0.1)
    close_killed_runs(services, "tiles")
    assert services.tracker.read_run(run_id).status == "KILLED"
    assert services.registry.download_detector("tiles", 1, tmp_path / "copy").name == tags["detector_digest"]


def test_a_line_that_never_ran_has_nothing_to_close(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OWNER, raising=False)
    services.tracker.initialise()
    close_killed_runs(services, "tiles")
    assert os.environ.get(OWNER) is None
