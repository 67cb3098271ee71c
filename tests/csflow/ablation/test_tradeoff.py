"""The choice between quality and time; the front against a definition spelled out."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.ablation.groups import variants
from csflow.ablation.plan import PlannedVariant
from csflow.ablation.request import Request
from csflow.ablation.summaries import VariantSummary, summarise_variants
from csflow.ablation.timing import Timing
from csflow.ablation.tradeoff import choose_variant, pareto_front
from csflow.config import DataConfig, LineConfig, ScoringConfig
from csflow.errors import DataError
from tests.csflow.ablation.figures import row

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))
OWN = LINE.scoring


def summaries(*figures: tuple[float | None, float | None], width: float = 0.001) -> list[VariantSummary]:
    """Variants of widths 1, 2 … with these milliseconds and AUROCs."""
    planned = variants(Request(line=LINE, groups=("width",), widths=tuple(range(1, len(figures) + 1))))
    entries = [PlannedVariant(variant=variant, key=f"key{index}") for index, variant in enumerate(planned)]
    rows = {f"key{index}": row(f"key{index}", *found, width=width) for index, found in enumerate(figures)}
    return summarise_variants(entries, rows)


def names(found: list[VariantSummary] | tuple[VariantSummary, ...]) -> list[int]:
    return [summary.variant.line.flow.hidden for summary in found]


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_its_definition_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    points = [(float(c), float(q)) for c, q in draw.integers(0, 6, (draw.integers(1, 15), 2))]  # with many ties
    front = pareto_front(points)
    for index, (cost, quality) in enumerate(points):
        better = [p for p in points if (p[0] < cost and p[1] >= quality) or (p[0] <= cost and p[1] > quality)]
        assert (index in front) == (not better)
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


def test_the_best_that_fits_is_chosen() -> None:
    found = choose_variant(summaries((10, 0.95), (20, 0.97), (30, 0.99), (15, 0.93)), takt_ms=25, by="test", own=OWN)
    assert names((found.chosen, found.best)) == [2, 2]
    assert (names(found.front), found.tied, found.too_slow) == ([1, 2, 3], 1, 1)


def test_within_the_interval_of_the_best_the_fastest_is_chosen() -> None:
    figures = summaries((10, 0.95), (20, 0.965), (24, 0.97), (5, 0.949), width=0.02)
    found = choose_variant(figures, takt_ms=25, by="synthetic", own=OWN)
    assert names((found.chosen, found.best)) == [1, 3]
    assert found.tied == 3, "0.949 is below the interval's end of 0.95"


def test_the_takt_itself_still_fits_and_nothing_fitting_names_the_fastest() -> None:
    figures = summaries((10, 0.95), (20, 0.97))
    assert names((choose_variant(figures, takt_ms=10, by="test", own=OWN).chosen,)) == [1]
    with pytest.raises(DataError, match=r"(?s)9\.9 ms.*width 1.*10\.0 ms"):
        choose_variant(figures, takt_ms=9.9, by="test", own=OWN)


def test_variants_without_figures_are_no_candidates() -> None:
    figures = summaries((None, 0.99), (10, None), (30, 0.9))
    assert names((choose_variant(figures, takt_ms=50, by="test", own=OWN).chosen,)) == [3]
    with pytest.raises(DataError, match="--by synthetic"):
        choose_variant(summaries((None, 0.99), (10, None)), takt_ms=50, by="test", own=OWN)
    with pytest.raises(DataError, match=r"roles\.gate"):
        choose_variant(summaries((10, None)), takt_ms=50, by="synthetic", own=OWN)


def test_what_only_varies_the_data_is_never_chosen() -> None:
    planned = variants(Request(line=LINE, groups=("shots",)))
    entries = [PlannedVariant(variant=variant, key=variant.name) for variant in planned]
    found = summarise_variants(entries, {entry.key: row(entry.key, 5, 0.9) for entry in entries})
    with pytest.raises(DataError, match="varies only the images fitted"):
        choose_variant(found, takt_ms=50, by="test", own=OWN)


def test_one_experiment_in_two_groups_stands_on_the_front_once() -> None:
    planned = variants(Request(line=LINE, groups=("score", "map")))
    entries = [PlannedVariant(variant=v, key=v.line.method_digest()) for v in planned]
    found = summarise_variants(entries, {entry.key: row(entry.key, 5, 0.9) for entry in entries})
    choice = choose_variant(found, takt_ms=50, by="test", own=OWN)
    assert [summary.name for summary in choice.front] == ["score: mean z²", "score: exact likelihood",
                                                          "score: maximum of the map", "map: all scales"]  # fmt: skip


def test_pasted_defects_choose_no_score_and_no_map() -> None:
    """On Magnetic Tile Defects they put the maximum of the map before the mean, real defects behind it."""
    planned = variants(Request(line=LINE, groups=("score", "map", "width"), widths=(8,)))
    entries = [PlannedVariant(variant=variant, key=variant.name) for variant in planned]
    better = {"maximum of the map": 0.99, "all scales": 0.98}
    found = summarise_variants(entries, {entry.key: row(entry.key, 5, better.get(entry.key, 0.9)) for entry in entries})
    choice = choose_variant(found, takt_ms=50, by="synthetic", own=OWN)
    assert {summary.name for summary in choice.front} == {"score: mean z²", "map: finest scale", "width: width 8"}
    assert [each.name for each in choice.left_out] == ["score: exact likelihood", "score: maximum of the map",
                                                       "map: all scales"]  # fmt: skip
    by_test = choose_variant(found, takt_ms=50, by="test", own=OWN)
    assert (by_test.chosen.name, by_test.left_out) == ("score: maximum of the map", ())
    other = choose_variant(found, takt_ms=50, by="synthetic", own=ScoringConfig(score="max"))
    assert other.chosen.name == "score: maximum of the map", "a line keeps its own"


def test_a_time_taken_while_others_computed_is_known_as_such() -> None:
    times = Timing(median_ms=1, p95_ms=2, repetitions=9, threads=2, machine="here", load=0.1)
    assert [times.model_copy(update={"load": load}).busy for load in (0.1, 0.9, None)] == [False, True, False]
    assert len(choose_variant(summaries((10, 0.95), (20, 0.97)), takt_ms=50, by="test", own=OWN).timings) == 2
