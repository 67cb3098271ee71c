"""The tables of an ablation."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from csflow.ablation.table import METRICS, NOTES, brief_table, table, to_csv, to_html, to_markdown
from tests.csflow.ablation.figures import made


def test_the_csv_has_every_figure_of_every_row_file() -> None:
    summaries = made()
    read = list(csv.DictReader(io.StringIO(to_csv(summaries))))
    rows = [row for summary in summaries for row in summary.rows]
    assert [line["row"] for line in read] == [row.key for row in rows]
    for line, row in zip(read, rows, strict=True):
        assert line["error"] == row.error
        for name in METRICS:
            value = row.metrics.get(name)
            assert line[name] == ("" if value is None else str(value.value))
        assert line["cores_missing"] == ("" if row.timing is None else "0.5")
        assert line["ms_median"] == ("" if row.timing is None else str(row.timing.median_ms))
    assert {line["paper_data"] for line in read} == {"MVTec AD (Table 3)", "MVTec AD (Table 4)", ""}


def test_markdown_names_the_papers_data_set_and_shows_what_broke() -> None:
    text = to_markdown("Ablation of tiles", made())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"\|", lines[0])) for line in lines)
    assert "97.8 on MVTec AD (Table 3)" in text
    assert "Broken: 2 blocks: It <b>diverged</b> | badly at epoch 3." in text
    assert "a core" in text
    assert "tiles at f00" in text
    assert "other processes kept at most 0.50 cores busy" in text
    assert "89.0" in text, "what speaks against synthetic defects is said below them"


@pytest.mark.parametrize(
    ("head", "ends"),
    [("AUROC, synthetic", {"mean z²": "85.63", "maximum of the map": "88.97"}),
     ("image AUROC", {"mean z²": "96.98", "maximum of the map": "94.18"})],
)  # fmt: skip
def test_the_evidence_against_synthetic_defects_is_what_its_files_say(head: str, ends: dict[str, str]) -> None:
    results = Path(__file__).parents[3] / "benchmarks" / "results"
    lines = [line.split(" | ") for line in (results / "recipe-mtd/table.md").read_text().splitlines() if " | " in line]
    index = lines[0].index(head)
    for name, value in ends.items():
        assert next(cells for cells in lines if cells[0] == f"| {name}")[index].startswith(value)
        assert f"{float(value):.1f}" in " ".join(NOTES)
    rows = {row["method"]: row for row in json.loads((results / "table2-mtd.json").read_text())["rows"]}
    for name in ("CS-Flow", "CS-Flow (score by maximum)"):
        assert f"{100 * rows[name]['image_auroc']['mean']:.1f}" in " ".join(NOTES)


def test_a_cell_is_the_mean_over_the_seeds_and_names_its_rows() -> None:
    summaries = made()
    head, *lines = table(summaries)
    cells = dict(zip(head, lines[0], strict=True))
    values = [100 * row.metrics["image_auroc"].value for row in summaries[0].rows]
    assert cells["image AUROC"].startswith(f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} [")
    assert cells["rows"].split() == [row.key[:8] for row in summaries[0].rows]
    assert "AUPRO" not in head
    assert set(brief_table(summaries)[0]) < set(head)


def test_html_is_one_file_and_escapes() -> None:
    page = to_html("Ablation of tiles", made(), b"png", {"scales": b"roc"})
    assert "data:image/png;base64,cG5n" in page
    before, _, after = page.partition("data:image/png;base64,cm9j")
    assert "<h2>scales</h2>" in before
    assert "<h2>blocks</h2>" in after, "curves stand below their group"
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page
    assert "&lt;b&gt;diverged" in page
    assert "<img" not in to_html("Ablation of tiles", made(), None, {})
