"""Row files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csflow.ablation.rows import AblationRow, row_file, store_row, stored_row
from csflow.system.workspace import Workspace
from tests.csflow.ablation.figures import row
from tests.damage import damages, inflict


def test_rows_survive_their_file(tmp_path: Path) -> None:
    written = row("a", 3.0, 0.5)
    file = tmp_path / "row.json"
    file.write_text(json.dumps(written.model_dump(mode="json"), indent=2))
    assert AblationRow.model_validate_json(file.read_text()) == written


def test_rows_written_before_scores_were_kept_are_read() -> None:
    plain = row("a", 3.0, 0.5).model_dump(mode="json")
    del plain["test_scores"]
    assert AblationRow.model_validate_json(json.dumps(plain)).test_scores == {}


def test_a_damaged_row_is_put_aside_and_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One changed digit would be another figure."""
    workspace, written = Workspace(tmp_path), row("a", 3.0, 0.5)
    store_row(workspace, written)
    assert stored_row(workspace, "a") == written
    file = row_file(workspace, "a")
    for damage, content in damages(file.read_bytes(), flips=64):
        inflict(file, content)
        capsys.readouterr()
        found = stored_row(workspace, "a")
        assert found in (None, written), damage
        if found is None:
            assert "Put aside as a.json.damaged" in capsys.readouterr().err, damage
        store_row(workspace, written)
        assert stored_row(workspace, "a") == written, damage


def test_rows_of_an_older_csflow_are_read(tmp_path: Path) -> None:
    workspace, written = Workspace(tmp_path), row("a", 3.0, 0.5)
    row_file(workspace, "a").parent.mkdir(parents=True)
    row_file(workspace, "a").write_text(json.dumps(written.model_dump(mode="json"), indent=2))
    assert stored_row(workspace, "a") == written
