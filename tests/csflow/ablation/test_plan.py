"""Plans that are missing or old, and rows that a plan does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.ablation.plan import newest_ablation, read_plan
from csflow.errors import DataError
from csflow.system.workspace import Workspace


def test_what_is_missing_is_said(first: Path, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="csflow ablate nothing"):
        newest_ablation("nothing", workspace)
    with pytest.raises(DataError, match="no plan"):
        read_plan(tmp_path)
    with pytest.raises(DataError, match="no row"):
        read_plan(first).variant("0" * 64)


def test_a_plan_written_by_an_earlier_release_is_read(tmp_path: Path) -> None:
    line = {"line": "plates", "data": {"path": "plates"}}
    variant = {"group": "width", "name": "width 8", "line": line, "joined": [], "quoted": None}
    plain = {
        "line": line,
        "entries": [{"variant": variant, "key": "k"}],
        "run_id": "r",
        "planned": "2026-01-01T00:00:00+00:00",
        "overrides": {"flow.hidden": 4},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plain))
    plan = read_plan(tmp_path)
    assert (plan.keys, plan.names("k"), plan.base.flow.hidden) == (["k"], "width: width 8, plates", 4)
