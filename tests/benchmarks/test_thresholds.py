import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import thresholds
import torch
from scipy import stats
from threadpoolctl import threadpool_limits
from threshold_breaks import Scenario, _one_draw, counted_twice, measured
from threshold_figure import threshold_figure
from threshold_study import (
    Family,
    Population,
    Split,
    families,
    judged,
    kept_test,
    repeated,
    shape_test,
    total_test,
    uniformity,
)

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, threshold_rank

RULE = CalibrationConfig(alpha=0.1)
SURE = CalibrationConfig(alpha=0.1, confidence=0.9)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def _normal() -> Family:
    return Family("normal", lambda generator, size: generator.normal(size=size), lambda x: float(stats.norm.sf(x)))


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_the_survival_of_a_family_is_that_of_its_sample(family: Family) -> None:
    sample = np.asarray(family.sample(np.random.default_rng(0), 200_000), dtype=np.float64)
    for quantile in (0.1, 0.5, 0.8, 0.95, 0.99):
        score = float(np.quantile(sample, quantile))
        observed = float((sample > score).mean())
        assert family.rate_above(score) == pytest.approx(observed, abs=5 * np.sqrt(0.25 / len(sample)))
    assert family.ties == (len(np.unique(sample)) < len(sample))


def test_false_alarms_are_those_of_a_slow_direct_count() -> None:
    family, seed = _normal(), 3
    generator, expected, rates = np.random.default_rng(seed), [], []
    for _ in range(20):
        held_out, new = family.draw(generator, 40, 30)
        threshold = sorted(held_out)[int(np.ceil(41 * 0.9)) - 1]
        expected.append(sum(1 for score in new if score > threshold))
        rates.append(1 - stats.norm.cdf(threshold))
    result = repeated(family, RULE, n=40, fresh=30, draws=20, seed=seed)
    assert result.false_alarms.tolist() == expected
    assert result.true_rates == pytest.approx(np.array(rates), abs=1e-12)


@pytest.mark.parametrize("rule", [RULE, SURE])
def test_exact_rate_and_share_agree_with_integrals_over_the_thresholds_quantile(rule: CalibrationConfig) -> None:
    row = judged(_normal(), rule, n=40, fresh=20, draws=50, seed=0)
    rank = threshold_rank(40, rule.alpha, rule.confidence)
    below = (np.arange(200_000) + 0.5) / 200_000  # quantile of the threshold; its density is that of an order statistic
    density = stats.beta.pdf(below, rank, 40 - rank + 1)
    assert row.expected_rate == pytest.approx(float((density * (1 - below)).mean()), abs=1e-6)
    assert row.expected_kept == pytest.approx(float((density * (1 - below <= rule.alpha)).mean()), abs=1e-4)


def test_the_test_of_the_total_agrees_with_convolving_step_by_step() -> None:
    alarms = np.array([0, 2, 1, 4])
    single = stats.betabinom.pmf(np.arange(11), 10, 3, 18)
    pmf = single
    for _ in range(3):
        pmf = np.convolve(pmf, single)
    many = pmf[7:].sum()
    assert total_test(alarms, n=20, fresh=10, rank=18, ties=True) == pytest.approx(many, abs=1e-12)
    both = min(1.0, 2 * min(many, pmf[:8].sum()))
    assert total_test(alarms, n=20, fresh=10, rank=18, ties=False) == pytest.approx(both, abs=1e-12)


def test_tests_hold_their_level_on_sound_draws() -> None:
    values = [judged(_normal(), RULE, n=30, fresh=20, draws=40, seed=seed) for seed in range(120)]
    for p in (np.array([row.p_total for row in values]), np.array([row.p_shape for row in values])):
        assert stats.binomtest(int((p <= 0.1).sum()), len(p), 0.1, alternative="greater").pvalue > 1e-3


def test_tests_find_a_rule_that_is_one_rank_too_low() -> None:
    generator = np.random.default_rng(1)
    alarms = generator.binomial(500, generator.beta(6, 96, 400))  # threshold is the 96th of 101 instead of the 97th
    assert total_test(alarms, n=101, fresh=500, rank=97, ties=True) < 1e-6
    assert shape_test(alarms, n=101, fresh=500, rank=97, ties=True, seed=0) < 1e-4
    assert kept_test(150, 200, 0.95, ties=True) < 1e-10


def test_with_ties_only_the_side_that_breaks_the_promise_is_tested() -> None:
    none = np.zeros(200, dtype=np.int64)
    assert total_test(none, n=100, fresh=100, rank=91, ties=True) == pytest.approx(1.0)
    assert total_test(none, n=100, fresh=100, rank=91, ties=False) < 1e-10
    assert shape_test(none, n=100, fresh=100, rank=91, ties=True, seed=0) > 0.1
    assert kept_test(200, 200, 0.9, ties=True) == 1.0


def test_p_values_of_good_images_are_uniform_and_of_other_images_are_not() -> None:
    class Shifted(Family):
        def draw(self, generator: np.random.Generator, n: int, fresh: int) -> tuple[np.ndarray, np.ndarray]:
            held_out, new = super().draw(generator, n, fresh)
            return held_out, new + 0.7

    sound = uniformity(_normal(), n=60, draws=200, seed=5)
    assert sound.p_uniform > 1e-3
    assert sound.cumulative[-1] == 1.0
    shifted = Shifted("shifted", _normal().sample, _normal().survival)
    assert uniformity(shifted, n=60, draws=200, seed=5).p_uniform < 1e-6
    assert uniformity(families()[3], n=60, draws=200, seed=5).p_uniform > 1e-3


def test_a_split_never_judges_an_image_it_calibrated_on() -> None:
    split = Split("pool", np.arange(30.0))
    held_out, new = split.draw(np.random.default_rng(0), 20, 10)
    assert sorted([*held_out, *new]) == list(range(30))
    assert not split.ties
    assert Split("pool", np.array([1.0, 1.0, 2.0])).ties


def test_the_pool_as_population_knows_its_rate_and_keeps_the_promise() -> None:
    pool = np.random.default_rng(2).gamma(2.0, size=90)
    population = Population("pool", pool)
    assert population.rate_above(float(np.sort(pool)[80])) == pytest.approx(9 / 90)
    row = judged(population, SURE, n=60, fresh=30, draws=100, seed=0)
    assert row.p_kept is not None
    assert row.p_kept > 1e-3


def test_a_broken_assumption_shows_and_the_sound_one_beside_it_does_not() -> None:
    def rate(case: Scenario) -> float:
        rates = []
        for draw in range(12):
            held_out, new = _one_draw(case, [0, draw])
            rates.append((new > np.sort(held_out)[threshold_rank(len(held_out), 0.05, None) - 1]).mean())
        return float(np.mean(rates))

    assert rate(Scenario()) < 0.08
    assert rate(Scenario(4, grouped=True, counted=1)) < 0.1
    assert rate(Scenario(4)) > 0.2
    assert rate(Scenario(calibrate_on="fit")) > 0.1
    assert rate(Scenario(drift=0.5)) > 0.08


def test_the_surprise_of_a_single_draw_is_that_of_random_ranks() -> None:
    held_out, new = np.arange(19.0), np.array([30.0, 31.0, 5.0])  # threshold is the largest of 19; two of three exceed
    case = measured("line", "case", CalibrationConfig(alpha=0.05), [(held_out, new)], broken=True)
    assert case.observed_rate == pytest.approx(2 / 3)
    generator = np.random.default_rng(0)
    ranks = generator.permuted(np.tile(np.arange(22), (100_000, 1)), axis=1)
    at_least_two = ((ranks[:, 19:] > ranks[:, :19].max(axis=1, keepdims=True)).sum(axis=1) >= 2).mean()
    assert case.p_surprise == pytest.approx(float(at_least_two), abs=0.002)


def test_pictures_of_one_part_counted_as_many_keep_the_promise_less_often_than_promised() -> None:
    rule = CalibrationConfig(alpha=0.05, confidence=0.95)
    sound = counted_twice(rule, n=120, pictures_a_part=1, draws=200, seed=0)
    broken = counted_twice(rule, n=120, pictures_a_part=4, draws=200, seed=0)
    assert sound.observed_kept is not None
    assert broken.observed_kept is not None
    assert sound.observed_kept >= 0.93
    assert broken.observed_kept < 0.87


def test_the_quick_mode_passes_and_writes_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = thresholds.Size((0.05, 0.2), n=60, fresh=40, draws=60, breaks=1)
    monkeypatch.setattr(thresholds, "QUICK", small)
    target = tmp_path / "result.json"
    assert thresholds.main(["--quick", "--json", str(target), "--plot", str(tmp_path / "plot.png")]) == 0
    result = json.loads(target.read_text())
    assert len(result["rows"]) == 5 * 2 * 2
    assert {row["images"] for row in result["required_images"] if row["confidence"] is None} == {99, 49, 19, 9, 4}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    labels = threshold_figure(result).axes[0].get_legend_handles_labels()[1]
    assert labels[2:] == [family.name for family in families()]


def test_a_wrong_rule_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    decide = Calibration.decide

    def generous(self: Calibration, score: float) -> str | None:
        return decide(self, score + 0.3)

    monkeypatch.setattr(thresholds, "QUICK", thresholds.Size((0.2,), n=60, fresh=40, draws=60, breaks=1))
    monkeypatch.setattr(Calibration, "decide", generous)
    assert thresholds.main(["--quick"]) == 1
    assert "fails below" in capsys.readouterr().out
