"""Every text can be printed on every terminal, and files are UTF-8 in every locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def csflow(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("LANG", "LC_ALL", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, "-m", "csflow.cli", *words],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        pytest.param({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
    ],
)
def test_every_character_is_printed_or_replaced(tmp_path: Path, locale: dict[str, str]) -> None:
    folder = tmp_path / "Größe"
    folder.mkdir()
    (folder / "tile.yaml").write_text("line: tile\ndescription: Fläche z² ≥ 1 …\ndata: {path: däta}\n", "utf-8")
    environment = {"CSFLOW_LINES": str(folder), "CSFLOW_HOME": str(tmp_path / "höme"), **locale}
    for words in (("lines",), ("serve",), ("why", "tile"), ("--help",), ("serve", "--help")):
        done = csflow(*words, **environment)
        assert b"Traceback" not in done.stderr, done.stderr.decode("latin-1")
        assert done.returncode in (0, 1, 2)
    done = csflow("lines", "--json", **environment)
    assert "Fläche z² ≥ 1 …" in done.stdout.decode().encode().decode("unicode_escape")
    missing = csflow("why", "grö", **environment).stderr
    assert b"cannot be a line" in missing


def test_the_mark_of_progress_can_be_printed_everywhere() -> None:
    from pipelines import local

    assert local._MARK_VALUE.isascii()
