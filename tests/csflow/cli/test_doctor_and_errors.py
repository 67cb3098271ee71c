from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from csflow.cli import run_app
from csflow.cli.app import app
from csflow.errors import CsflowError, UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of the test's own: what the project's holds is none of its business."""
    monkeypatch.setenv("CSFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csflow.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_is_a_tour() -> None:
    page = command("--help").stdout
    wanted = {
        *("import", "data", "synthesize"),
        *("run", "demo", "check", "estimate", "ablate", "choose"),
        *("score", "evaluate", "compare", "why"),
        *("promote", "rollback", "reconcile"),
        *("serve", "token", "export", "endpoint"),
        *("lines", "compile", "submit", "schedule", "status", "prune", "restore", "doctor"),
    }
    assert [name for name in wanted if f" {name} " not in page] == []
    panels = [
        page.index(f"─ {panel} ─") for panel in ("Bring data in", "Train", "Judge", "Release", "Serve", "Operate")
    ]
    assert panels == sorted(panels), "in the order in which one meets them"
    assert len(app.registered_commands) + len(app.registered_groups) == len(wanted)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["score", "nothing.png", "--model", "demo-texture"], 2, "nothing.png does not exist"),
        (["why", "demo-textur"], 2, "Did you mean"),
        (["frobnicate"], 2, "frobnicate"),
        (["score", "README.md", "--model", "no/such/folder"], 2, "no/such/folder does not exist"),
        (["score", "README.md", "--model", "demo-texture@newest"], 2, "newest"),
    ],
)
def test_usage_errors_leave_with_two_and_one_message(words: list[str], code: int, message: str) -> None:
    done = command(*words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_full_or_foreign_disk_is_one_message(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    lonely = typer.Typer()
    lonely.command()(fill)
    monkeypatch.setattr(sys, "argv", ["csflow"])
    with pytest.raises(SystemExit) as left:
        run_app(lonely)
    assert left.value.code == 1
    message = capsys.readouterr().err
    assert os.strerror(number) in message
    assert "runs/x" in message


def test_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    from csflow.cli.doctor import doctor

    monkeypatch.chdir(ROOT)
    doctor()
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path))
    with pytest.raises(CsflowError, match=r"1 of \d+ checks failed: lines"):
        doctor()
    (tmp_path / "bad.yaml").write_text("line: bad\n")
    with pytest.raises(CsflowError, match="lines"):
        doctor()
    assert issubclass(UsageError, CsflowError)


def test_doctor_needs_no_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that only serves detectors has none, and nothing is wrong with it."""
    from csflow.cli.doctor import doctor

    monkeypatch.delenv("CSFLOW_LINES", raising=False)
    monkeypatch.delenv("CSFLOW_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    doctor(as_json=True)
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["project"]["found"].startswith(f"none from {tmp_path} upwards")
    assert found["lines"]["ok"]
    monkeypatch.setenv("CSFLOW_PROJECT", str(tmp_path))
    with pytest.raises(CsflowError, match="checks failed: disk, project, lines|checks failed: project, lines"):
        doctor(as_json=True)
