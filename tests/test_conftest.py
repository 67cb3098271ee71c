"""A machine that must be able to run a kind of test cannot pass by skipping it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
SKIPPED = """
import pytest

@pytest.mark.docker
def test_needs_an_engine():
    pytest.skip("no engine")
"""


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("gpu", "1 skipped"), ("gpu,docker", "1 failed")])
@pytest.mark.slow
def test_a_required_test_is_not_skipped(tmp_path: Path, required: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = docker\n")
    (tmp_path / "test_it.py").write_text(SKIPPED)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, env=os.environ | {"CSFLOW_REQUIRE": required}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome in ran.stdout, ran.stdout
    if "failed" in outcome:
        assert "no engine" in ran.stdout
