"""The help of every command: a usage line as one writes it, and paragraphs that fit the width."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from csflow.cli.app import app


def helped(*words: str, columns: int = 80) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert done.exit_code == 0, done.output
    return re.sub(r"\x1b\[[0-9;]*m", "", done.output)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("run",), "{LINE}"),
        (("ablate",), "{LINE}..."),
        (("serve",), "[LINE]..."),
        (("schedule",), "[LINE]"),
        (("choose",), "{LINE}"),
        (("evaluate",), "{LINE}"),
        (("score",), "{IMAGE}..."),
        (("compile",), "[GRAPH]"),
        (("synthesize",), "{DEST}"),
        (("data", "add"), "{LINE} {FOLDER}"),
        (("import", "mvtec"), "{SOURCE} {DEST}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_usage_names_arguments_in_capitals_once(words: tuple[str, ...], arguments: str) -> None:
    (usage,) = (line for line in helped(*words).splitlines() if "Usage:" in line)
    assert usage.strip().endswith(f"[OPTIONS] {arguments}")


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_paragraphs_are_filled_at_any_width(columns: int) -> None:
    """A docstring is broken at 120 columns; broken there and at the terminal's width, it would look torn."""
    about = helped("prune", columns=columns).partition("╭")[0]
    paragraphs = [part.strip().splitlines() for part in re.split(r"\n\s*\n", about) if "That is" in part]
    (lines,) = paragraphs
    first_words = [line.split()[0] for line in lines[1:]]
    for line, word in zip(lines, first_words, strict=False):
        assert len(line.strip()) + 1 + len(word) > columns - 4, f"{word!r} would have fitted behind {line.strip()!r}"


def test_defaults_that_depend_on_the_line_are_named() -> None:
    assert "[default: (the line's champion)]" in helped("evaluate", columns=120)
    assert "[default: (LINE.onnx)]" in helped("export", columns=120)
