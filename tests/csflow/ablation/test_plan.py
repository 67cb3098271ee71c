"""Plans that are missing or old, and rows that a plan does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.ablation.kept import write_kept
from csflow.ablation.plan import PLAN, AblationPlan, newest_ablation, read_plan
from csflow.errors import DataError
from csflow.system.workspace import Workspace
from tests.csflow.ablation.figures import LINE
from tests.damage import damages, inflict


def test_what_is_missing_is_said(first: Path, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="csflow ablate nothing"):
        newest_ablation("nothing", workspace)
    with pytest.raises(DataError, match="no plan"):
        read_plan(tmp_path)
    with pytest.raises(DataError, match="no row"):
        read_plan(first).variant("0" * 64)


def test_a_damaged_plan_hides_no_other_one(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    plans = [
        AblationPlan(line=LINE, entries=(), run_id="r", planned=f"2026-01-0{day}T00:00:00+00:00") for day in (1, 2)
    ]
    files = [workspace.ablations / LINE.line / f"{number}" / PLAN for number in (1, 2)]
    for file, plan in zip(files, plans, strict=True):
        write_kept(file, plan)
    assert newest_ablation(LINE.line, workspace) == files[1].parent
    sound = files[1].read_bytes()
    for damage, content in damages(sound, flips=4):
        inflict(files[1], content)
        capsys.readouterr()
        assert newest_ablation(LINE.line, workspace) == files[0].parent, damage
        assert "Put aside as plan.json.damaged" in capsys.readouterr().err, damage
    with pytest.raises(DataError, match="no plan of an ablation .*csflow ablate LINE"):
        read_plan(files[1].parent)


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
