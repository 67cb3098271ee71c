"""Progress of child processes: lines in a log, a bar on a terminal."""

from __future__ import annotations

import sys

import pytest

from csflow.system.progress import MARK, Relay, counting, say, track


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Relay() as progress:
        progress.show("train: epoch 3/14  nll +1.2")
        progress.show("register: csflow-tiles version 2")
    assert capsys.readouterr().err == "  train: epoch 3/14  nll +1.2\n  register: csflow-tiles version 2\n"


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the captured standard error pass for a terminal 60 columns wide; to be called once it is captured."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")


def test_a_terminal_gets_a_bar_that_fills(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    progress = Relay()
    progress.show("train: epoch 7/14  nll +1.2 per dimension  gradient 0.52  3.6 s")
    half = capsys.readouterr().err
    assert half.count("█") == half.count("░") == 12
    assert not half.endswith("\n"), "the next count overwrites it"
    assert len(half.removeprefix("\r\x1b[2K")) <= 60
    progress.show("train: epoch 14/14  nll +1.1")
    assert capsys.readouterr().err.endswith("\n")
    progress.show("register: csflow-tiles version 2")
    assert capsys.readouterr().err == "  register: csflow-tiles version 2\n"


def test_nothing_is_printed_on_the_line_of_an_unfinished_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    with Relay() as progress:
        progress.show("train: epoch 7/14")
        progress.show("train: stopped early")
        progress.show("extract features: 3/9")
    lines = capsys.readouterr().err.split("\n")
    assert ["█" in line for line in lines] == [True, False, True, False]
    assert [line.removeprefix("\r\x1b[2K").strip("█░ ") for line in lines] == [
        "train: epoch 7/14", "train: stopped early", "extract features: 3/9", ""
    ]  # fmt: skip


def test_a_long_loop_in_a_log_is_lines_that_can_be_found_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "»» ")
    assert list(track("abc", total=3, label="inspect", every=0)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [f"»» inspect: {done}/3" for done in (1, 2, 3)]


def test_counts_are_a_bar_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MARK, raising=False)
    with counting() as tell:
        assert tell is say, "a log gets lines"
    pretend_terminal(monkeypatch)
    with counting() as tell:
        tell("train: epoch 7/14")
    bar = capsys.readouterr().err
    assert bar.count("█") == 12
    assert bar.endswith("\n"), "what is printed next starts on a line of its own"
    monkeypatch.setenv(MARK, "»» ")
    with counting() as tell:
        assert tell is say, "csflow run picks the lines out of a step's log"
