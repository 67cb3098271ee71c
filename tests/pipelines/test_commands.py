"""``csflow compile | submit | schedule | status``, as a person types them, against a server over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from csflow.cli.app import app
from csflow.errors import ConfigError, CsflowError, UsageError
from csflow.system.ports import free_port
from pipelines.api import NoServerError
from tests.pipelines.kfp_server import KfpServer

pytestmark = pytest.mark.filterwarnings("ignore")
REPO = "https://git.example/data.git"


@pytest.fixture(autouse=True)
def lines(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lines"
    folder.mkdir()
    monkeypatch.setenv("CSFLOW_LINES", str(folder))
    monkeypatch.setenv("COLUMNS", "160")
    return folder


def write(folder: Path, name: str, more: str = "", repo: str = REPO) -> None:
    (folder / f"{name}.yaml").write_text(f"line: {name}\ndata: {{repo: '{repo}', path: data}}\n{more}")


def typed(*words: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=answer)
    if isinstance(result.exception, CsflowError):
        raise result.exception
    return result


def kinds(output: str) -> list[str]:
    return [text.split()[-1] if text[0] == " " else text.split(": ")[1].split()[0] for text in output.splitlines()
            if text[:2] in ("+ ", "~ ", "- ")]  # fmt: skip


def test_compile_writes_both_documents_with_the_lines_resources(lines: Path, tmp_path: Path) -> None:
    write(lines, "tiles", "resources: {gpus: 1, memory: 3Gi}\n")
    target = tmp_path / "new" / "retrain.yaml"
    result = typed("compile", "retrain", "--line", "tiles", "--output", str(target))
    assert result.exit_code == 0, result.output
    assert "version csflow-retrain-" in result.output
    pipeline, platforms = yaml.safe_load_all(target.read_text())
    train = pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert (train["accelerator"]["resourceCount"], train["resourceMemoryRequest"]) == ("1", "3Gi")
    assert "exec-train" in platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert typed("compile", "ablate", "--output", str(target)).exit_code == 0
    assert next(yaml.safe_load_all(target.read_text()))["pipelineInfo"]["name"] == "csflow-ablate"


@pytest.mark.slow
def test_submit_starts_a_run_and_waits_for_it(lines: Path, kfp: KfpServer) -> None:
    write(lines, "tiles")
    kfp.states = ["SUCCEEDED"]
    result = typed("submit", "tiles", "--shards", "2", "--wait")
    assert result.exit_code == 0, result.output
    (run,) = kfp.runs.values()
    assert f"{kfp.url}/#/runs/details/{run['run_id']}" in result.output
    assert "succeeded" in result.output
    assert run["runtime_config"]["parameters"]["shards"] == 2
    kfp.states = ["FAILED"]
    assert typed("submit", "tiles", "--wait").exit_code == 1


@pytest.mark.slow
def test_submit_if_changed_without_a_champion_submits(lines: Path, kfp: KfpServer) -> None:
    write(lines, "tiles")
    assert typed("submit", "tiles", "--if-changed").exit_code == 0
    assert len(kfp.runs) == 1


def test_submit_refuses_what_cannot_work_before_it_asks_anybody(lines: Path, kfp: KfpServer, tmp_path: Path) -> None:
    write(lines, "tiles", repo=str(tmp_path))
    with pytest.raises(UsageError, match="no pod can read"):
        typed("submit", "tiles")
    with pytest.raises(UsageError, match="Give one"):
        typed("submit", "tiles", "--force", "--if-changed")
    with pytest.raises(ConfigError, match="no line 'tile'"):
        typed("submit", "tile")
    assert typed("submit", "tiles", "--shards", "0").exit_code == 2
    assert kfp.requests == []


def test_submit_without_server_names_the_variable(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_KFP_URL", raising=False)
    write(lines, "tiles")
    with pytest.raises(NoServerError, match="CSFLOW_KFP_URL"):
        typed("submit", "tiles")


SCHEDULE = "schedule: {cron: '0 3 * * *', timezone: Europe/Berlin}\n"


def test_dry_run_without_server_shows_what_is_wanted(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_KFP_URL", raising=False)
    write(lines, "tiles", SCHEDULE)
    write(lines, "bolts")
    result = typed("schedule", "--all", "--dry-run")
    assert result.exit_code == 0
    assert "the plan for an empty server" in result.output
    assert "+ tiles: create 0 3 * * * Europe/Berlin" in result.output
    assert "daylight saving changes on" in result.output
    assert "bolts" not in result.output
    monkeypatch.setenv("CSFLOW_KFP_URL", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    assert "No Kubeflow Pipelines server answers" in typed("schedule", "tiles", "--dry-run").output
    with pytest.raises(NoServerError):
        typed("schedule", "tiles", "--yes")


@pytest.mark.slow
def test_schedule_shows_the_difference_asks_and_acts(lines: Path, kfp: KfpServer) -> None:
    write(lines, "tiles", SCHEDULE)
    write(lines, "bolts", SCHEDULE)
    dry = typed("schedule", "--all", "--dry-run")
    assert kinds(dry.output) == ["create", "create"]
    refused = typed("schedule", "--all", answer="n\n")
    assert refused.exit_code == 1
    assert "Change 2 of 2" in refused.output
    assert kfp.recurring == {}
    assert typed("schedule", "--all", answer="y\n").exit_code == 0
    assert len(kfp.recurring) == 2
    assert "Nothing to change." in typed("schedule", "--all", "--yes").output

    (lines / "bolts.yaml").unlink()
    write(lines, "tiles", SCHEDULE.replace("0 3", "0 4"))
    only = typed("schedule", "tiles", "--yes")
    assert kinds(only.output) == ["replace"]
    assert len(kfp.recurring) == 2, "other lines are left alone"
    everything = typed("schedule", "--all", "--yes", "--service-account", "trainer")
    assert "bolts: delete 0 3 * * * Europe/Berlin" in everything.output
    assert "~ tiles: replace" in everything.output, "another service account"
    (left,) = kfp.recurring.values()
    assert left["service_account"] == "trainer"
    assert left["trigger"]["cron_schedule"]["cron"] in {"0 0 2 * * *", "0 0 3 * * *"}


@pytest.mark.slow
def test_schedule_does_nothing_if_any_line_is_broken(lines: Path, kfp: KfpServer) -> None:
    write(lines, "tiles", SCHEDULE)
    typed("schedule", "--all", "--yes")
    write(lines, "tiles", "schedule: {cron: '0 3 * *'}\n")
    with pytest.raises(ConfigError, match="4 fields"):
        typed("schedule", "--all", "--yes")
    (lines / "tiles.yaml").write_text("line: [")
    with pytest.raises(ConfigError, match="not YAML"):
        typed("schedule", "--all", "--yes")
    (lines / "tiles.yaml").unlink()
    with pytest.raises(ConfigError, match="No YAML files"):
        typed("schedule", "--all", "--yes")
    assert len(kfp.recurring) == 1
    with pytest.raises(UsageError, match="one line, or --all"):
        typed("schedule")


@pytest.mark.slow
def test_status_shows_every_line(lines: Path, kfp: KfpServer) -> None:
    write(lines, "tiles", SCHEDULE)
    write(lines, "bolts")
    (lines / "broken.yaml").write_text("line: broken\n")
    typed("schedule", "tiles", "--yes")
    typed("submit", "tiles")
    shown = json.loads(typed("status", "--json").output)
    rows = {row["line"]: row for row in shown["lines"]}
    assert shown["notes"] == []
    assert rows["tiles"]["last_run"] == "pending"
    assert rows["tiles"]["last_run_at"].startswith("2026-01-01T")
    assert rows["tiles"]["next_run"].endswith(":00+00:00")
    assert rows["tiles"]["notes"] == []
    assert (rows["bolts"]["last_run"], rows["bolts"]["champion"], rows["bolts"]["next_run"]) == (None, None, None)
    assert "data" in rows["broken"]["notes"][0]
    write(lines, "tiles", SCHEDULE.replace("0 3", "0 4"))
    table = typed("status").output
    assert "pending 2026-01-01T" in table
    assert "tiles: its schedule is not in force as its YAML says: csflow schedule tiles" in table


def test_status_without_server_says_so_and_shows_the_rest(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSFLOW_KFP_URL", raising=False)
    write(lines, "tiles", SCHEDULE)
    result = typed("status")
    assert result.exit_code == 0
    assert "tiles" in result.output
    assert "CSFLOW_KFP_URL is not set" in result.output
