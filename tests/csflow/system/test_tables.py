"""Tables are never cut: on a terminal of any width, and in a pipe."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDPOINT = "http://a-host-with-a-rather-long-name.factory.example:31080/v1/models/bolts-and-nuts-of-cell-7:predict"
REASON = "kept: " + "the champion finds more defects and " * 6 + "so it stays"
CODE = f"""
from csflow.system.tables import print_facts, print_line, print_table
rows = [("bolts-and-nuts-of-cell-7", "12 (held)", {ENDPOINT!r}), ("nuts", "-", "[red]not[/] running")]
print_table(("line", "champion", "endpoint"), rows, title="Lines", caption="A caption of the table.", sections=[0])
print_facts([("because", {REASON!r}), ("endpoint", {ENDPOINT!r})], title="Gate", indent=2)
print_line("[/x] is printed as it is")
"""


def printed(columns: int | None) -> str:
    """What a process prints: in a pipe, or where a width is given."""
    import os

    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    environment |= {} if columns is None else {"COLUMNS": str(columns)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return done.stdout


@pytest.mark.parametrize("columns", [None, 40, 80, 200])
def test_no_cell_is_cut_at_any_width(columns: int | None) -> None:
    text = printed(columns)
    assert "…" not in text
    for whole in ("bolts-and-nuts-of-cell-7", "12 (held)", ENDPOINT, "[red]not[/] running", "[/x] is printed as it is"):
        assert whole in text
    assert REASON in " ".join(text.split())


def test_a_pipe_gets_a_row_a_line() -> None:
    lines = printed(None).splitlines()
    assert any("bolts-and-nuts-of-cell-7" in line and ENDPOINT in line for line in lines)
    assert any(line.strip().startswith("because") and line.endswith("so it stays") for line in lines)
    assert all(len(line) < 400 for line in lines), "no line is padded to a width that nobody has"


@pytest.mark.parametrize(("columns", "blocks"), [(40, True), (80, True), (200, False)])
def test_what_does_not_fit_is_one_block_a_row(columns: int, blocks: bool) -> None:
    assert (f"  endpoint: {ENDPOINT}" in printed(columns)) is blocks


def test_a_terminal_wraps_long_values_below_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from csflow.system import tables

    buffer = io.StringIO()
    monkeypatch.setattr(
        tables, "_console", lambda: Console(file=buffer, width=60, force_terminal=True, color_system=None)
    )
    tables.print_facts([("because", REASON)], indent=2)
    first, second, *_ = buffer.getvalue().splitlines()
    assert first.startswith("  because  kept:")
    assert second.startswith(" " * len("  because  "))
    assert max(map(len, buffer.getvalue().splitlines())) <= 60
