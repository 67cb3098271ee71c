"""Plans that are missing, and rows that a plan does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.ablation.plan import newest_ablation, read_plan
from csflow.errors import DataError
from csflow.system.workspace import Workspace


def test_what_is_missing_is_said(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="csflow ablate nothing"):
        newest_ablation("nothing", workspace)
    with pytest.raises(DataError, match="no plan"):
        read_plan(tmp_path)
    with pytest.raises(DataError, match="no row"):
        read_plan(newest_ablation("plates", workspace)).variant("0" * 64)
