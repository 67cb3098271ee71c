"""The tables and the picture of an ablation."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from csflow.ablation.figure import MOST_CURVES, roc_figures, tradeoff_figure
from csflow.ablation.groups import variants
from csflow.ablation.request import Request
from csflow.ablation.table import METRICS, NOTES, brief, table, to_csv, to_html, to_markdown
from csflow.ablation.tradeoff import Entry, Row, Summary, Timing, summarise
from csflow.config import DataConfig, LineConfig
from csflow.metrics import Measured

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def made(*, crowded: bool = False, metrics: tuple[str, ...] = ("image_auroc", "synthetic_auroc")) -> list[Summary]:
    """Tables 3 and 4 and some widths over two seeds; one variant broken."""
    request = Request(line=LINE, groups=("scales", "blocks", "width"), widths=WIDTHS, seeds=(0, 1))
    draw, rows, entries = np.random.default_rng(0), {}, []
    for variant in variants(request):
        key = variant.line.method_digest()
        entries.append(Entry(variant=variant, key=key))
        if variant.name == "2 blocks":
            rows[key] = Row(key=key, line="tiles", seed=0, config={}, error="It <b>diverged</b> | badly\nat epoch 3.")
            continue
        spread = 0.01 if crowded else 1.0
        ms, auroc = float(20 * np.exp(spread * draw.normal())), float(0.95 + 0.02 * spread * draw.normal())
        timing = Timing(median_ms=ms, p95_ms=ms + 1, repetitions=9, threads=2, machine="a core", load=0.5)
        measured = dict.fromkeys(metrics, Measured(auroc, auroc - 0.01, auroc + 0.01))
        seed = variant.line.training.seed
        rows[key] = Row(key=key, line="tiles", seed=seed, config={}, git_rev="f00", metrics=measured, timing=timing,
                        parameters=1234, training_seconds=9.0)  # fmt: skip
    return summarise(entries, rows)


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
    place = lines[0].index(head)
    for name, value in ends.items():
        assert next(cells for cells in lines if cells[0] == f"| {name}")[place].startswith(value)
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
    assert set(brief(summaries)[0]) < set(head)


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


@pytest.mark.parametrize("crowded", [False, True])
def test_numbers_in_the_picture_do_not_overlap(crowded: bool) -> None:
    figure = tradeoff_figure(made(crowded=crowded))
    axes, beside = figure.axes
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    for texts in (axes.texts, beside.texts):
        boxes = [Text.get_window_extent(text, renderer).shrunk(0.9, 0.7) for text in texts]  # without its line
        assert len(boxes) > 10
        assert [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])] == []
    assert axes.get_xscale() == "log"


def test_the_picture_joins_the_front_and_explains_every_number() -> None:
    summaries = made()
    figure = tradeoff_figure(summaries)
    axes, beside = figure.axes
    front, rest = axes.lines
    costs, qualities = (np.asarray(data, dtype=float) for data in front.get_data())
    assert (np.diff(costs) > 0).all()
    assert (np.diff(qualities) > 0).all(), "more time only for more quality"
    numbers = {text.get_text() for text in axes.texts}
    assert len(numbers) == len(costs) + len(rest.get_xdata())
    listed = {text.get_text() for text in beside.texts}
    assert numbers <= listed
    assert {summary.name for summary in summaries if summary.sound} <= listed
    assert front.get_marker() != rest.get_marker(), "told apart without colour"


def test_without_test_figures_synthetic_ones_are_shown_and_without_both_nothing() -> None:
    assert "synthetic" in tradeoff_figure(made(metrics=("synthetic_auroc",))).axes[0].get_ylabel()
    assert "no variant" in tradeoff_figure(made(metrics=())).axes[0].texts[0].get_text()


def test_groups_that_nobody_can_choose_from_are_not_in_the_picture() -> None:
    planned = variants(Request(line=LINE, groups=("shots", "width"), widths=(8,)))
    measured = {"image_auroc": Measured(0.9, 0.8, 1.0)}
    timing = Timing(median_ms=5, p95_ms=6, repetitions=9, threads=2, machine="a core", load=0.0)
    rows = {each.name: Row(key=each.name, line="tiles", seed=0, config={}, metrics=measured, timing=timing)
            for each in planned}  # fmt: skip
    _, beside = tradeoff_figure(summarise([Entry(variant=v, key=v.name) for v in planned], rows)).axes
    listed = {text.get_text() for text in beside.texts}
    assert "width: width 8" in listed
    assert not any(text.startswith("shots") for text in listed)


def scored(*groups: Any, line: LineConfig = LINE) -> list[Summary]:
    """Variants over two seeds, of which the second has other scores; the very first one has none."""
    draw, planned = np.random.default_rng(0), variants(Request(line=line, groups=groups, widths=WIDTHS, seeds=(0, 1)))
    entries, rows = [], {}
    for place, variant in enumerate(planned):
        seed, key = variant.line.training.seed, str(place)
        good, bad = draw.normal(size=40), draw.normal(1.0 - seed + 0.1 * place, size=30)
        scores = {"good": tuple(good), "defective": tuple(bad)} if place else {}
        entries.append(Entry(variant=variant, key=key))
        rows[key] = Row(key=key, line="tiles", seed=seed, config={}, test_scores=scores)
    return summarise(entries, rows)


def test_every_group_has_its_roc_curves_of_the_first_seed() -> None:
    from sklearn.metrics import roc_auc_score

    summaries = scored("detectors", "width")
    found = roc_figures(summaries)
    assert set(found) == {"detectors", "width"}
    for group, figure in found.items():
        legend = figure.axes[0].get_legend()
        assert legend is not None
        shown = dict(text.get_text().split("  ") for text in legend.get_texts())
        expected = {}
        for summary in summaries:
            scores = summary.rows[0].test_scores
            if summary.variant.group == group and scores:
                labels = np.repeat([0, 1], [40, 30])
                auroc = roc_auc_score(labels, np.concatenate([scores["good"], scores["defective"]]))
                expected[summary.variant.name] = auroc
        assert list(shown) == sorted(expected, key=lambda name: -expected[name])[:MOST_CURVES]
        assert [float(area) for area in shown.values()] == pytest.approx([expected[name] for name in shown], abs=6e-4)


def test_one_curve_alone_is_no_comparison() -> None:
    assert roc_figures(scored("standardization")) == {}, "one of the two variants has no scores"
    assert roc_figures(made()) == {}, "rows written before scores were kept"
