"""The messages that the documentation explains are those that the code prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    {*(ROOT / "docs" / "operating").glob("*.md"), ROOT / "docs" / "guides" / "data-gate.md"}
    - {ROOT / "docs" / "operating" / "serving.md"}  # its tables list metrics and options; test_serving_page.py reads it
)
OTHERS = re.compile(
    "database is locked|detected dubious ownership|No space left on device|Permission denied|torchvision::nms"
)
"""Messages of other programs, which their words are known by."""


def messages(page: str) -> Iterator[str]:
    """Messages that begin a row of a table or a paragraph."""
    for line in page.splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])
        elif line.startswith("**`"):
            yield from re.findall(r"\*\*`([^`]+)`\*\*", line)


def literals(source: str) -> Iterator[str]:
    """Text literals; those of f-strings with a NUL for each value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def all_literals() -> str:
    files = [file for room in ("csflow", "pipelines") for file in sorted((ROOT / room).rglob("*.py"))]
    texts = [text for file in files for text in literals(file.read_text(encoding="utf-8"))]
    return "\n".join([*texts, (ROOT / "Makefile").read_text(encoding="utf-8")])


def unknown(message: str) -> list[str]:
    """Parts of a message between its values (``…``) that no literal contains."""
    parts = [part.strip(" .:'()") for part in message.split("…")]
    return [part for part in parts if len(part) > 5 and part not in all_literals() and not OTHERS.search(part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_message_is_in_the_code(page: Path) -> None:
    found = list(messages(page.read_text(encoding="utf-8")))
    assert found or page.stem == "faq"
    assert {message: unknown(message) for message in found if unknown(message)} == {}


def test_a_message_that_was_reworded_is_found() -> None:
    (message,) = messages("**`The data gate rejects the images of …`**")
    assert unknown(message) == ["The data gate rejects the images of"]
    assert unknown("The data gate refuses the images of …") == []
