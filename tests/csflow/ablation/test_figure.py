"""The pictures of an ablation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from csflow.ablation.figure import MOST_CURVES, roc_figures, tradeoff_figure
from csflow.ablation.groups import variants
from csflow.ablation.plan import PlannedVariant
from csflow.ablation.request import Request
from csflow.ablation.rows import AblationRow
from csflow.ablation.summaries import VariantSummary, summarise_variants
from csflow.ablation.timing import Timing
from csflow.config import LineConfig
from csflow.metrics import Measured
from tests.csflow.ablation.figures import LINE, WIDTHS, made


@pytest.mark.parametrize("crowded", [False, True])
def test_numbers_in_the_picture_do_not_overlap(crowded: bool) -> None:
    figure = tradeoff_figure(made(crowded=crowded))
    axes, listing = figure.axes
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    for texts in (axes.texts, listing.texts):
        boxes = [Text.get_window_extent(text, renderer).shrunk(0.9, 0.7) for text in texts]  # without its line
        assert len(boxes) > 10
        assert [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])] == []
    assert axes.get_xscale() == "log"


def test_the_picture_joins_the_front_and_explains_every_number() -> None:
    summaries = made()
    figure = tradeoff_figure(summaries)
    axes, listing = figure.axes
    front, rest = axes.lines
    costs, qualities = (np.asarray(data, dtype=float) for data in front.get_data())
    assert (np.diff(costs) > 0).all()
    assert (np.diff(qualities) > 0).all(), "more time only for more quality"
    numbers = {text.get_text() for text in axes.texts}
    assert len(numbers) == len(costs) + len(rest.get_xdata())
    listed = {text.get_text() for text in listing.texts}
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
    rows = {each.name: AblationRow(key=each.name, line="tiles", seed=0, config={}, metrics=measured, timing=timing)
            for each in planned}  # fmt: skip
    _, listing = tradeoff_figure(
        summarise_variants([PlannedVariant(variant=v, key=v.name) for v in planned], rows)
    ).axes
    listed = {text.get_text() for text in listing.texts}
    assert "width: width 8" in listed
    assert not any(text.startswith("shots") for text in listed)


def scored(*groups: Any, line: LineConfig = LINE) -> list[VariantSummary]:
    """Variants over two seeds, of which the second has other scores; the very first one has none."""
    draw, planned = np.random.default_rng(0), variants(Request(line=line, groups=groups, widths=WIDTHS, seeds=(0, 1)))
    entries, rows = [], {}
    for index, variant in enumerate(planned):
        seed, key = variant.line.training.seed, str(index)
        good, bad = draw.normal(size=40), draw.normal(1.0 - seed + 0.1 * index, size=30)
        scores = {"good": tuple(good), "defective": tuple(bad)} if index else {}
        entries.append(PlannedVariant(variant=variant, key=key))
        rows[key] = AblationRow(key=key, line="tiles", seed=seed, config={}, test_scores=scores)
    return summarise_variants(entries, rows)


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
