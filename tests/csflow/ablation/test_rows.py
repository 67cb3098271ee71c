"""Row files."""

from __future__ import annotations

import json
from pathlib import Path

from csflow.ablation.rows import AblationRow
from tests.csflow.ablation.figures import row


def test_rows_survive_their_file(tmp_path: Path) -> None:
    written = row("a", 3.0, 0.5)
    file = tmp_path / "row.json"
    file.write_text(json.dumps(written.model_dump(mode="json"), indent=2))
    assert AblationRow.model_validate_json(file.read_text()) == written


def test_rows_written_before_scores_were_kept_are_read() -> None:
    plain = row("a", 3.0, 0.5).model_dump(mode="json")
    del plain["test_scores"]
    assert AblationRow.model_validate_json(json.dumps(plain)).test_scores == {}
