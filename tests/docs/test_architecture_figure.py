"""The architecture figure in the docs is what its script draws, names every step, and stands by itself."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/images/make_architecture.py"))


def test_the_figure_is_what_its_script_draws(script: dict[str, Any]) -> None:
    drawn, kept = script["drawing"](), (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    assert drawn == kept, "run: .venv/bin/python docs/images/make_architecture.py"


def test_the_figure_names_the_steps_in_the_order_of_the_pipeline(script: dict[str, Any]) -> None:
    steps = [station.step for station in script["STATIONS"] if station.step]
    assert steps == ["ingest", "validate", "cache_features", "train", "evaluate", "register", "promote"]
    for step in steps:
        assert (ROOT / f"components/{step}.py").is_file()


def test_the_figure_describes_itself_and_needs_nothing_from_outside(script: dict[str, Any]) -> None:
    text = script["drawing"]()
    root = ElementTree.fromstring(text)
    for name in (root.get("aria-labelledby") or "").split():
        assert [node.text for node in root if node.get("id") == name] != []
    assert (root.findtext(f"{SVG}title") or "").strip()
    assert "every night" in (root.findtext(f"{SVG}desc") or "")
    without_namespace = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|@import|@font-face|href", without_namespace)


def test_no_text_is_smaller_than_nine_pixels_on_a_phone(script: dict[str, Any]) -> None:
    # A phone is 390 pixels wide, and a page keeps some of them as its margins.
    sizes = [int(size) for size in re.findall(r"font-size: (\d+)px", script["STYLE"])]
    assert min(sizes) * 366 / script["WIDTH"] >= 9
