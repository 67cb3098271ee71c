"""Progress of child processes: lines in a log, a bar on a terminal."""

from __future__ import annotations

import sys

import pytest

from csflow.system.progress import relay


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    relay("train: epoch 3/14  nll +1.2")
    relay("register: csflow-tiles version 2")
    assert capsys.readouterr().err == "  train: epoch 3/14  nll +1.2\n  register: csflow-tiles version 2\n"


def test_a_terminal_gets_a_bar_that_fills(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    relay("train: epoch 7/14  nll +1.2 per dimension  gradient 0.52  3.6 s")
    half = capsys.readouterr().err
    assert half.count("█") == half.count("░") == 12
    assert not half.endswith("\n"), "the next count overwrites it"
    assert len(half.removeprefix("\r\x1b[2K")) <= 60
    relay("train: epoch 14/14  nll +1.1")
    assert capsys.readouterr().err.endswith("\n")
    relay("register: csflow-tiles version 2")
    assert capsys.readouterr().err == "  register: csflow-tiles version 2\n"
