"""``csflow synthesize`` as a shell sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from csflow.cli.synthesize import synthesize
from csflow.errors import UsageError
from csflow.synthetic import DEMO_LINES, demo

app = typer.Typer()
app.command()(synthesize)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIDE", 32)
    for name, line in DEMO_LINES.items():
        monkeypatch.setitem(DEMO_LINES, name, replace(line, train=1, test_good=1, test_defective=2))


def test_draws_both_lines_or_the_one_asked_for(tmp_path: Path) -> None:
    both = CliRunner().invoke(app, [str(tmp_path / "both")], catch_exceptions=False)
    assert both.exit_code == 0
    assert both.stdout.count("4 images, 2 masks") == 2
    one = CliRunner().invoke(app, [str(tmp_path / "one"), "--line", "demo-object", "--seed", "4"])
    assert one.exit_code == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["demo-object"]


def test_an_unknown_line_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), "--line", "gears"])
    assert isinstance(result.exception, UsageError)
    assert list(tmp_path.iterdir()) == []
