"""The commands that a summary recommends are about its line and can be typed where it is read."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from csflow.runs.summary import RunSummary, print_summary
from csflow.system.workspace import Workspace

SUMMARY = RunSummary(
    line="bolts", outcome="promoted", reason="", data_md5="d", data_digest="d", git_rev="f" * 40,
    defects_found="25 of 30 (83.3 %, 95 % interval 65.3 to 94.4 %)", image_auroc=None,
    image_auroc_interval=None, pixel_auroc=None, threshold=None, alpha=None, promise="", model_name="csflow-bolts",
    model_version=1, alias="champion", champion_version=1, endpoint=None, report="report.html", run_id="r",
    experiment="7",
)  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an environment of its own in ``.venv``."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "csflow"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return programs


def shown(capsys: pytest.CaptureFixture[str], home: Path) -> list[str]:
    print_summary(SUMMARY, Workspace(home))
    return [line.strip() for line in capsys.readouterr().out.partition("Try next")[2].splitlines()]


def test_the_next_challenger_is_one_of_the_same_line(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(line.startswith(".venv/bin/csflow run bolts --force ") for line in shown(capsys, tmp_path))


def test_a_program_that_the_shell_finds_is_named_alone(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    assert shutil.which("csflow") == str(environment / "csflow")
    assert any(line.startswith("csflow why bolts ") for line in shown(capsys, tmp_path))


def test_from_another_folder_programs_have_their_whole_path(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert any(line.startswith(f"{environment}/csflow run bolts --force") for line in shown(capsys, tmp_path))


def test_the_address_of_the_runs_opens_the_view_of_trained_models(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    last = "".join(shown(capsys, tmp_path)[-2:])
    assert "mlflow ui --backend-store-uri sqlite:///" in last
    assert "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning" in last
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:80")
    only = shown(capsys, tmp_path)[-1]
    assert only.startswith("http://mlflow.example:80/#/experiments/7/runs?workflowType=machine_learning")


def test_the_table_leads_with_the_defects_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(SUMMARY, Workspace(tmp_path))
    out = capsys.readouterr().out
    assert out.index("defects found") < out.index("image AUROC")
    assert "25 of 30" in out
