"""Figures in the documents are those of the result files; no document is left unfinished."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
ORDER = ("CS-Flow", "Mahalanobis", "1-NN")


def table_after(document: Path, heading: str) -> dict[str, list[str]]:
    """Cells of the Markdown table whose first heading cell is ``heading``, by the first cell of each row."""
    lines = document.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|"))
        rows[name] = cells
    return rows


def rows_of(table: int) -> dict[str, Mapping[str, Any]]:
    return {row["method"]: row for row in json.loads((RESULTS / f"table{table}-mtd.json").read_text())["rows"]}


def test_the_readme_shows_table_2_as_it_was_measured() -> None:
    shown, measured = table_after(ROOT / "README.md", "method"), rows_of(2)
    quoted = json.loads((RESULTS / "table2-mtd.json").read_text())["quoted"]
    theirs = ", ".join(row["method"] for row in quoted)
    assert set(shown) == {*measured, theirs}
    assert shown[theirs] == ["quoted", "", ", ".join(f"{100 * row['paper']:.1f}" for row in quoted)]
    for method, row in measured.items():
        auroc, paper = row["image_auroc"], row["paper"]
        several = len(auroc["seeds"]) > 1
        spread = f" ± {100 * auroc['sd']:.2f}" if several else ""
        each = ", ".join(f"{100 * seed:.2f}" for seed in auroc["seeds"]) if several else "deterministic"
        expected = [f"{100 * auroc['mean']:.2f}{spread}", each, "" if paper is None else f"{100 * paper:.1f}"]
        assert shown[method] == expected, method


def test_the_readme_shows_unseen_tiles_beside_the_headline_as_they_were_measured() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    split, unseen = (
        next(line for line in lines if line.startswith(f"| {start}")) for start in ("authors' split, as", "tiles that")
    )
    shown = [re.findall(r"\d+\.\d+", line) for line in (split, unseen)]
    measured = {row["method"]: row for row in json.loads((RESULTS / "unseen-tiles-mtd.json").read_text())["rows"]}
    assert shown[0] == [f"{100 * rows_of(2)[name]['image_auroc']['mean']:.2f}" for name in ORDER]
    assert shown[1] == [
        f"{100 * measured[name]['unseen_tiles']['mean']:.1f}" for name in ("CS-Flow (width 64)", *ORDER[1:])
    ]


@pytest.mark.parametrize(
    ("table", "heading"), [(3, "strategies of using scales"), (4, "number of coupling blocks")], ids=["3", "4"]
)
def test_the_results_page_shows_tables_3_and_4_as_they_were_measured(table: int, heading: str) -> None:
    shown, measured = table_after(RESULTS / "README.md", heading), rows_of(table)
    assert list(shown) == list(measured)
    for method, row in measured.items():
        (low, high), auroc = row["interval"][0], row["image_auroc"]["mean"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        assert shown[method] == [f"{100 * auroc:.2f}", interval, f"{100 * row['paper']:.1f}"], method


def test_no_document_holds_a_place_that_was_to_be_filled() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    left = {
        file: found
        for file in listed.stdout.splitlines()
        if (found := re.findall(r"@@[A-Z_]+@@|TO" + r"DO|FIX" + r"ME", (ROOT / file).read_text()))
    }
    assert not left
