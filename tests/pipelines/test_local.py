"""The process that runs a graph finds project, lines and workspace, wherever the command was typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.system.project import PROJECT
from csflow.system.workspace import Workspace
from pipelines.local import run_child

ROOT = Path(__file__).resolve().parents[2]
TELL = """
import json, os, sys
names = ["CSFLOW_HOME", "CSFLOW_LINES", "CSFLOW_PROJECT"]
print(json.dumps({"path": sys.path} | {name: os.environ[name] for name in names}))
"""


def test_a_child_gets_folders_that_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("modules", "elsewhere/lines", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "modules" / "tell.py").write_text(TELL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("CSFLOW_LINES", "lines")
    monkeypatch.setenv(PROJECT, str(ROOT))
    log = run_child(["tell"], tmp_path / "run", Workspace(Path("home")))
    told = json.loads(log.read_text())
    assert told["CSFLOW_HOME"] == str(tmp_path / "elsewhere" / "home")
    assert told["CSFLOW_LINES"] == str(tmp_path / "elsewhere" / "lines")
    assert told["CSFLOW_PROJECT"] == str(ROOT)
    assert str(ROOT) in told["path"], "the child imports pipelines and components"
