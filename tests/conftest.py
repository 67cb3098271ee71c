"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["GIT_CONFIG_NOSYSTEM"] = "1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty csflow workspace of this test's own."""
    root = tmp_path / "csflow-home"
    monkeypatch.setenv("CSFLOW_HOME", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


@pytest.fixture(scope="session")
def mtd() -> Path:
    """The Magnetic Tile Defects images as published."""
    folder = Path(os.environ.get("CSFLOW_TEST_DATA", "/nonexistent")) / "mtd"
    if not folder.is_dir():
        pytest.skip("needs the Magnetic Tile Defects images: set CSFLOW_TEST_DATA to the folder that holds mtd/")
    return folder
