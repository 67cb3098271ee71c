"""Pixel metrics against scikit-learn and a slow sweep over every threshold, and what binning may cost."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn import metrics as oracle

from csflow.detector.heatmap import upsample
from csflow.errors import DataError
from csflow.metrics import (
    PIXEL_METRICS,
    PixelCounts,
    PixelMetric,
    aupro,
    binning_error,
    bootstrap_interval,
    count_pixels,
    intervals,
    paired_pixel_bootstrap,
    pixel_ap,
    pixel_auroc,
    pixel_by_defect,
    pixel_counts,
    pixel_metrics,
)

Arrays = list[np.ndarray]
Case = tuple[Arrays, Arrays]


def case(seed: int, *, images: int = 6, size: int = 16, digits: int = 6, shift: float = 1.5) -> Case:
    """Maps of the size of their masks; every second image has regions of many sizes, some of one pixel."""
    rng = np.random.default_rng(seed)
    masks = [(rng.random((size, size)) < 0.02) & (i % 2 == 1) for i in range(images)]
    for mask in masks[1::2]:
        top, left = rng.integers(0, size - 8, 2)
        mask[top : top + rng.integers(2, 8), left : left + rng.integers(2, 8)] = True
    maps = [np.round(rng.gamma(2.0, size=(size, size)) + shift * mask, digits).astype(np.float32) for mask in masks]
    return maps, masks


def places(*marked: tuple[int, int], size: int = 6) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    for row, column in marked:
        mask[row, column] = True
    return mask


RAMP = np.arange(36, dtype=np.float32).reshape(6, 6)
NONE, ALL = places(), np.ones((6, 6), dtype=bool)

HOSTILE: dict[str, Case] = {
    "plain": case(0),
    "ties": case(1, digits=0),
    "chance": case(2, shift=0.0),
    "almost equal": ([np.float32(1) + np.spacing(np.float32(1)) * m.round() for m in case(3)[0]], case(3)[1]),
    "all equal": ([np.ones((6, 6), dtype=np.float32)] * 2, [NONE, places((2, 2), (3, 3))]),
    "one pixel": ([RAMP, RAMP], [NONE, places((3, 1))]),
    "lowest pixel": ([RAMP, RAMP], [NONE, places((0, 0))]),
    "diagonal": ([RAMP, RAMP], [NONE, places((0, 0), (1, 1), (5, 5))]),
    "perfect": ([RAMP, RAMP + 50 * places((0, 0), (4, 4))], [NONE, places((0, 0), (4, 4))]),
    "reversed": ([RAMP, RAMP - 50 * places((0, 0), (4, 4))], [NONE, places((0, 0), (4, 4))]),
    "no good pixel": ([RAMP, RAMP[::-1]], [NONE, ALL]),
    "no good image": ([RAMP, RAMP[::-1]], [ALL, places((1, 2), (5, 5))]),
    "sizes": ([RAMP, case(4)[0][1], case(4)[0][0]], [places((2, 3)), case(4)[1][1], case(4)[1][0]]),
}


def regions_of(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts by flooding from pixel to pixel."""
    left, found = {(int(r), int(c)) for r, c in np.argwhere(mask)}, []
    while left:
        front = [left.pop()]
        region = np.zeros_like(mask)
        while front:
            row, column = front.pop()
            region[row, column] = True
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(region)
    return found


def slow_aupro(maps: Arrays, masks: Arrays, limit: float = 0.3) -> float:
    """The curve at every distinct value, one threshold after the other, in float64."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in regions_of(mask)]
    good = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        rates.append(float((good >= threshold).mean()))
        overlaps.append(float(np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])))
    # A vertical piece at the limit adds nothing: the last point at or before it, then the interpolated one.
    inside = [i for i, rate in enumerate(rates) if rate <= limit]
    last = inside[-1]
    x, y = rates[: last + 1], overlaps[: last + 1]
    if rates[last] < limit:
        share = (limit - rates[last]) / (rates[last + 1] - rates[last])
        x, y = [*x, limit], [*y, overlaps[last] + share * (overlaps[last + 1] - overlaps[last])]
    return float(np.trapezoid(y, x) / limit)


def pooled(maps: Arrays, masks: Arrays) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])


ORACLES: dict[PixelMetric, Callable[[Arrays, Arrays], float]] = {
    "pixel_auroc": lambda maps, masks: oracle.roc_auc_score(*pooled(maps, masks)),
    "pixel_ap": lambda maps, masks: oracle.average_precision_score(*pooled(maps, masks)),
    "aupro": slow_aupro,
}
EXACT = {"pixel_auroc": pixel_auroc, "pixel_ap": pixel_ap, "aupro": aupro}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("metric", EXACT)
def test_the_exact_metrics_equal_their_oracles(metric: PixelMetric, name: str) -> None:
    maps, masks = HOSTILE[name]
    assert EXACT[metric](maps, masks) == pytest.approx(ORACLES[metric](maps, masks), abs=1e-9)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("name", ["plain", "ties", "one pixel", "all equal", "no good image"])
def test_aupro_up_to_any_rate(name: str, limit: float) -> None:
    maps, masks = HOSTILE[name]
    assert aupro(maps, masks, limit=limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)


def test_pixels_that_touch_by_a_corner_are_one_region() -> None:
    values = np.zeros((6, 6), dtype=np.float32)
    values[5, 5] = 1.0
    found = [values], [places((0, 0), (1, 1), (5, 5))]
    # Two regions, one of them found wholly before the first false alarm and one never: half the area and the rest.
    assert aupro(*found) == pytest.approx(0.5 + 0.3 / 2 / 2)


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("metric", EXACT)
def test_small_maps_are_enlarged_to_their_masks(metric: PixelMetric, digits: int) -> None:
    rng = np.random.default_rng(digits)
    sizes = [(17, 20), (14, 11), (5, 5)]
    masks = [rng.random(size) < share for size, share in zip(sizes, (0.1, 0.0, 1.0), strict=True)]
    maps = [np.round(rng.gamma(2.0, size=(6, 8)), digits).astype(np.float32) for _ in sizes]
    large = [upsample(m, (w, h)) for m, (h, w) in zip(maps, sizes, strict=True)]
    expected = ORACLES[metric](large, masks)
    assert EXACT[metric](maps, masks) == pytest.approx(expected, abs=1e-9)
    counts = count_pixels(maps, masks)
    binned = float(PIXEL_METRICS[metric](counts.masses())[0])
    assert abs(binned - expected) <= binning_error(counts)[metric] + 1e-12


@pytest.mark.parametrize("bins", [1, 2, 3, 8, 64, 4096])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_binned_value_is_within_its_error_of_the_exact_one(name: str, bins: int) -> None:
    maps, masks = HOSTILE[name]
    counts = count_pixels(maps, masks, bins=bins)
    for metric, bound in binning_error(counts).items():
        binned = float(PIXEL_METRICS[metric](counts.masses())[0])
        assert abs(binned - EXACT[metric](maps, masks)) <= bound + 1e-12, metric
        assert 0.0 <= bound < 1.0


def test_the_worst_orders_inside_the_bins_reach_the_errors() -> None:
    """Two bins of 50 good and 50 defective pixels each, one region; ordered as well, and as badly, as can be."""
    counts = PixelCounts(
        np.array([100], dtype=np.float32),
        np.array([[50, 50]], dtype=np.uint32),
        np.array([0]),
        np.array([[50, 50]], dtype=np.uint32),
        np.array([[0.5, 0.5]]),
    )
    low, high = np.repeat([0.0, 100.0], 50), np.repeat([99.0, 199.0], 50)
    between = np.concatenate([np.arange(1.0, 51.0), np.arange(101.0, 151.0)])
    mask = np.repeat([[False], [True]], 100, axis=1)
    bounds = binning_error(counts)
    for metric, bound in bounds.items():
        binned = float(PIXEL_METRICS[metric](counts.masses())[0])
        orders = (np.stack([low, high]), np.stack([high, between]))
        errors = [abs(binned - EXACT[metric]([order], [mask])) for order in orders]
        assert max(errors) == pytest.approx(bound, rel=0.02), metric
    assert bounds["pixel_auroc"] == 0.25


def test_many_bins_cost_little() -> None:
    counts = count_pixels(*case(5, images=20, size=64))
    errors = binning_error(counts)
    assert counts.good.shape[1] <= 4098
    assert errors["pixel_auroc"] < 1e-4
    assert errors["pixel_ap"] < 5e-3
    assert errors["aupro"] < 1e-3
    finer = binning_error(count_pixels(*case(5, images=20, size=64), bins=16_384))
    assert all(finer[name] < errors[name] for name in errors)


def test_every_pixel_is_counted_once() -> None:
    maps, masks = HOSTILE["sizes"]
    counts = count_pixels(maps, masks, bins=32)
    assert counts.good.sum(axis=1).tolist() == [(~mask).sum() for mask in masks]
    assert counts.defective.sum(axis=1).tolist() == [mask.sum() for mask in masks if mask.any()]
    assert counts.regions.sum(axis=1) == pytest.approx([len(regions_of(mask)) for mask in masks if mask.any()])
    assert counts.is_defective.tolist() == [mask.any() for mask in masks]


def test_more_images_than_are_summed_at_once() -> None:
    maps, masks = case(18, images=1100, size=9, digits=0)
    whole = count_pixels(maps, masks, bins=64).masses()
    assert whole.good.sum() == sum((~mask).sum() for mask in masks)
    assert whole.defective.sum() == sum(mask.sum() for mask in masks)


def test_each_resample_has_the_metrics_of_its_images() -> None:
    maps, masks = case(6, images=8, size=12, digits=0)
    counts = count_pixels(maps, masks)
    for times in intervals.resamples(counts.is_defective, 6, seed=0):
        for metric, measure in PIXEL_METRICS.items():
            for ours, row in zip(measure(counts.masses(times)), times, strict=True):
                chosen = np.repeat(np.arange(8), row)
                theirs = ORACLES[metric]([maps[i] for i in chosen], [masks[i] for i in chosen])
                assert ours == pytest.approx(theirs, abs=1e-9), metric


def test_the_interval_is_the_percentiles_over_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = case(7, images=8, size=12, digits=0)
    counts = count_pixels(maps, masks)
    draws = [
        oracle.average_precision_score(
            *pooled([maps[i] for i in np.repeat(np.arange(8), row)], [masks[i] for i in np.repeat(np.arange(8), row)])
        )
        for times in intervals.resamples(counts.is_defective, 40, seed=1)
        for row in times
    ]
    found = pixel_metrics(counts, samples=40, confidence=0.8, seed=1)
    assert found["pixel_ap"][1:] == pytest.approx(tuple(np.quantile(draws, [0.1, 0.9])))
    monkeypatch.setattr(intervals, "_PORTION", 100)
    assert pixel_metrics(counts, samples=40, confidence=0.8, seed=1) == found


def test_counts_of_some_images_are_the_counts_of_these_alone() -> None:
    maps, masks = case(8, size=12, digits=0)
    chosen = np.array([True, True, False, False, True, True])
    some = count_pixels(maps, masks).only(chosen)
    assert some.is_defective.tolist() == [False, True, False, True]
    left = [[item for item, stays in zip(items, chosen, strict=True) if stays] for items in (maps, masks)]
    for metric, measure in PIXEL_METRICS.items():
        assert measure(some.masses())[0] == pytest.approx(ORACLES[metric](*left), abs=1e-9)


def test_a_type_of_defect_is_measured_against_all_good_images() -> None:
    maps, masks = case(9, images=10)
    masks[3] = np.zeros_like(masks[3])  # a dent whose mask is empty: its pixels are good ones
    counts = count_pixels(maps, masks)
    defects = ["", "crack", "", "dent", "", "crack", "", "scratch", "", "scratch"]
    found = pixel_by_defect(counts, defects, samples=100)
    assert list(found) == ["crack", "scratch"]
    cracks = counts.only([kind != "scratch" for kind in defects])
    assert found["crack"] == pixel_metrics(cracks, samples=100)
    assert found["crack"] != found["scratch"]


def test_the_paired_difference_is_that_of_the_same_resamples() -> None:
    maps, masks = case(10, images=10, size=12, digits=0)
    better = [m + mask for m, mask in zip(maps, masks, strict=True)]
    first, second = count_pixels(maps, masks), count_pixels(better, masks)
    for metric, measure in PIXEL_METRICS.items():
        paired = paired_pixel_bootstrap(first, second, metric=metric, samples=200)
        draws = np.concatenate(
            [
                measure(second.masses(times)) - measure(first.masses(times))
                for times in intervals.resamples(first.is_defective, 200, seed=0)
            ]
        )
        expected = ORACLES[metric](better, masks) - ORACLES[metric](maps, masks)
        assert paired.difference == pytest.approx(expected, abs=1e-9)
        assert (paired.low, paired.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
        assert 0 < paired.low <= paired.difference <= paired.high
        assert paired.p_value == pytest.approx(2 / 201)


def test_maps_do_not_differ_from_themselves_on_another_scale() -> None:
    maps, masks = case(11, size=12, digits=0)
    first, second = count_pixels(maps, masks), count_pixels([np.exp(m / 4) for m in maps], masks)
    for metric in PIXEL_METRICS:
        assert paired_pixel_bootstrap(first, second, metric=metric, samples=50) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("given", [{"samples": 0}, {"confidence": 0}, {"confidence": 1.5}], ids=str)
def test_an_impossible_request_is_named(given: dict[str, float]) -> None:
    counts = count_pixels(*case(12))
    ((asked, value),) = given.items()
    expected = f"between 0 and 1, got {value}" if asked == "confidence" else f"at least one resample, got {value}"
    calls: list[Callable[..., object]] = [
        lambda **asked: pixel_metrics(counts, **asked),
        lambda **asked: pixel_by_defect(counts, [""] * 6, **asked),
        lambda **asked: paired_pixel_bootstrap(counts, counts, **asked),
    ]
    for measure in calls:
        with pytest.raises(DataError, match=expected):
            measure(**given)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
def test_a_difference_of_binned_maps_is_off_by_at_most_both_bounds(metric: PixelMetric) -> None:
    maps, masks = case(19, images=8, size=12)
    better = [m + mask for m, mask in zip(maps, masks, strict=True)]
    first, second = count_pixels(maps, masks, bins=12), count_pixels(better, masks, bins=12)
    exact = EXACT[metric](better, masks) - EXACT[metric](maps, masks)
    bound = binning_error(first)[metric] + binning_error(second)[metric]
    assert abs(paired_pixel_bootstrap(first, second, metric=metric, samples=5).difference - exact) <= bound


def test_detectors_counted_on_other_masks_are_not_compared() -> None:
    maps, masks = case(12)
    first = count_pixels(maps, masks)
    others = [count_pixels(maps[:4], masks[:4]), count_pixels(maps, masks[1:] + masks[:1])]
    masks[1] = masks[1] | (maps[1] > 2)
    for second in (*others, count_pixels(maps, masks)):
        with pytest.raises(DataError, match="different masks"):
            paired_pixel_bootstrap(first, second)


def test_perfect_maps_are_as_uncertain_as_perfect_images() -> None:
    maps, masks = case(13, images=12, shift=100.0)
    found = pixel_metrics(count_pixels(maps, masks))
    assert {measured.value for measured in found.values()} == {1.0} == {measured.high for measured in found.values()}
    assert all(0.05 < measured.low < 0.95 for measured in found.values())
    # Twelve images have good pixels, six have defective ones.
    as_images = bootstrap_interval(np.arange(18), np.arange(18) >= 12)
    assert found["pixel_auroc"].low == pytest.approx(as_images.low)
    upside_down = pixel_metrics(count_pixels([-m for m in maps], masks))
    assert upside_down["pixel_auroc"] == pytest.approx((0.0, 0.0, 1 - as_images.low))


def test_an_interval_of_maps_does_not_become_narrower_when_a_pixel_is_inverted() -> None:
    maps, masks = case(13, images=12, shift=100.0)
    perfect = pixel_metrics(count_pixels(maps, masks), samples=100)
    place = tuple(np.argwhere(masks[1])[0])
    maps[1][place] = min(m.min() for m in maps) - 1
    other = pixel_metrics(count_pixels(maps, masks), samples=100)
    for metric in ("pixel_auroc", "aupro"):
        assert other[metric].value < 1
        assert other[metric].low <= perfect[metric].low
    # Binned AP is not widened: it would be useless. Its docstring says how often it holds.
    assert other["pixel_ap"].low > perfect["pixel_ap"].low


def mottled(rng: np.random.Generator, defective: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map with an effect common to the image, and a square defect."""
    mask = np.zeros((16, 16), dtype=bool)
    pixels = rng.normal(size=mask.shape) + 0.3 * rng.normal()
    if defective:
        top, left = rng.integers(0, 11, 2)
        mask[top : top + 5, left : left + 5] = True
        pixels += mask * (3 + 0.6 * rng.normal())
    return pixels.astype(np.float32), mask


def test_intervals_of_few_images_hold_the_true_value() -> None:
    rng = np.random.default_rng(0)

    def drawn_counts(good: int, defective: int) -> PixelCounts:
        pairs = [mottled(rng, i >= good) for i in range(good + defective)]
        return count_pixels([m for m, _ in pairs], [mask for _, mask in pairs], bins=128)

    many = drawn_counts(3000, 250)
    held = dict.fromkeys(PIXEL_METRICS, 0)
    for _ in range(40):
        for metric, found in pixel_metrics(drawn_counts(60, 5), samples=100).items():
            held[metric] += found.low <= float(PIXEL_METRICS[metric](many.masses())[0]) <= found.high
    # The percentiles alone hold AUROC and AUPRO in about 72 % of such runs, AP in 87 %.
    assert held["pixel_auroc"] >= 35
    assert held["aupro"] >= 35
    assert held["pixel_ap"] >= 29


def test_perfect_maps_stay_so_when_the_sample_misses_their_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_counts, "_SAMPLE", 24)
    maps, masks = case(13, images=12, shift=100.0)
    for sign in (1, -1):
        counts = count_pixels([sign * m for m in maps], masks, bins=4)
        assert binning_error(counts)["pixel_auroc"] == 0.0


def test_perfect_maps_are_seen_through_the_rounding_of_huge_counts() -> None:
    rng = np.random.default_rng(0)
    good, defective = (rng.integers(2**31, 2**32 - 1, size=(3, 7)).astype(np.uint32) for _ in range(2))
    good[:, :4], defective[:, 4:] = 0, 0
    counts = PixelCounts(np.arange(6, dtype=np.float32), good, np.arange(3), defective, defective / 2**32)
    assert pixel_metrics(counts, samples=10)["pixel_auroc"].low < 0.9


def test_resamples_without_a_good_pixel_are_left_out() -> None:
    maps, masks = HOSTILE["no good image"]
    for value, low, high in pixel_metrics(count_pixels(maps, masks), samples=50).values():
        assert 0.0 <= low <= value <= high <= 1.0


def test_more_images_make_the_interval_narrower() -> None:
    few, many = (pixel_metrics(count_pixels(*case(14, images=n, size=12)), samples=300) for n in (8, 160))
    for metric in PIXEL_METRICS:
        assert many[metric].high - many[metric].low < 0.7 * (few[metric].high - few[metric].low)


def test_pixel_ties_count_half() -> None:
    assert pixel_auroc([np.ones((2, 2))], [np.eye(2, dtype=bool)]) == 0.5


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [([np.ones((2, 2))], [np.zeros((4, 4), dtype=bool)], "got 0 and 16"), ([], [], "got 0 and 0"),
     ([np.ones((2, 2))], [np.ones((4, 4), dtype=bool)], "got 16 and 0"), ([np.ones((2, 2))], [], "one mask"),
     ([np.full((2, 2), np.nan)], [np.eye(4, dtype=bool)], "NaN"),
     ([np.full((4, 4), np.inf)], [np.eye(4, dtype=bool)], "Map 0 holds"),
     ([np.ones((4, 4)), np.full((4, 4), 1e300)], [np.eye(4, dtype=bool)] * 2, "Map 1 holds"),
     ([np.ones((1, 4, 4))], [np.eye(4, dtype=bool)], "one anomaly map"),
     ([np.ones((4, 4))], [np.ones((4, 4, 3), dtype=bool)], "image 0")],
)  # fmt: skip
@pytest.mark.parametrize("measure", [*EXACT.values(), count_pixels])
@pytest.mark.filterwarnings("ignore:overflow")
def test_unusable_pixels_are_named(
    measure: Callable[[Arrays, Arrays], object], maps: Arrays, masks: Arrays, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure(maps, masks)


def test_a_choice_of_images_without_a_defect_has_no_metric() -> None:
    counts = count_pixels(*case(15))
    for measure in (pixel_metrics, binning_error):
        with pytest.raises(DataError, match="got 0 and"):
            measure(counts.only(~counts.is_defective))


def test_equal_numbers_of_pixels_in_other_images_are_other_masks() -> None:
    part, whole = np.arange(12.0).reshape(3, 4), np.arange(16.0).reshape(4, 4)
    clean, marked = np.zeros((3, 4), dtype=bool), np.arange(16).reshape(4, 4) >= 12
    first, second = count_pixels([part, whole], [clean, marked]), count_pixels([whole, part], [marked, clean])
    with pytest.raises(DataError, match="different masks"):
        paired_pixel_bootstrap(first, second)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, np.nan])
def test_an_impossible_limit_is_refused(limit: float) -> None:
    with pytest.raises(DataError, match="false positive rate"):
        aupro(*case(16), limit=limit)


def test_a_missing_type_is_named() -> None:
    with pytest.raises(DataError, match="got 1 for 6"):
        pixel_by_defect(count_pixels(*case(17)), ["crack"])


class Drawn(Sequence[np.ndarray]):
    """Arrays made when asked for, that knows how many of them are alive at once."""

    def __init__(self, images: int, make: Callable[[int], np.ndarray]) -> None:
        self.images, self.make, self.alive, self.most = images, make, 0, 0

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        item = self.make(index).view(Watched)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(item, self._gone)
        return item

    def _gone(self) -> None:
        self.alive -= 1


class Watched(np.ndarray):
    """A plain array may not be referred to weakly by every numpy."""


def drawn(images: int, size: int) -> tuple[Drawn, Drawn]:
    def map_of(index: int) -> np.ndarray:
        return np.random.default_rng(index).random((size, size), dtype=np.float32)

    return Drawn(images, map_of), Drawn(images, lambda index: map_of(-index - 1 + images) > 0.99 - index % 2)


@pytest.mark.parametrize("measure", [count_pixels, *EXACT.values()])
def test_images_are_never_held_together(measure: Callable[[Drawn, Drawn], object]) -> None:
    maps, masks = drawn(30, 16)
    measure(maps, masks)
    gc.collect()
    assert max(maps.most, masks.most) <= 2
    assert maps.alive == masks.alive == 0


def test_memory_is_bounded_by_bins_and_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_counts, "_SAMPLE", 20_000)
    images, size, bins = 60, 256, 256
    maps, masks = drawn(images, size)
    count_pixels(*drawn(2, 16))  # what is imported on the way does not count
    tracemalloc.start()
    counts = count_pixels(maps, masks, bins=bins)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counts.rows.size == images
    tables = images * (bins + 2) * (4 + 12 + 24)
    assert peak <= tables + 32 * 20_000 + 44 * size**2
    assert peak < images * size**2 * 4 / 2


def peak_of(measure: Callable[[Drawn, Drawn], object], maps: Drawn, masks: Drawn) -> int:
    tracemalloc.start()
    measure(maps, masks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(("metric", "stated"), [("pixel_auroc", 13), ("pixel_ap", 115), ("aupro", 175)])
def test_the_exact_metrics_take_the_memory_they_state(metric: PixelMetric, stated: int) -> None:
    size = 128

    def halves(images: int) -> tuple[Drawn, Drawn]:
        return drawn(images, size)[0], Drawn(images, lambda index: np.arange(size**2).reshape(size, size) % 2 == 0)

    EXACT[metric](*halves(2))  # what is imported on the way does not count
    few, many = (peak_of(EXACT[metric], *halves(images)) for images in (20, 60))
    per_pixel = (many - few) / (40 * size**2 / 2)
    assert stated / 1.5 <= per_pixel <= 1.2 * stated
    assert many <= 1.2 * (stated * 60 * size**2 / 2 + 40 * size**2)


@pytest.mark.slow
def test_large_maps_made_one_by_one_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1024 px; twice as many of them only need longer tables of bins."""
    monkeypatch.setattr(pixel_counts, "_SAMPLE", 100_000)
    size, bins = 1024, 256
    ramp = np.linspace(0, 1, size, dtype=np.float32)

    def map_of(index: int) -> np.ndarray:
        return np.roll(np.add.outer(ramp, ramp), index, axis=1)

    def mask_of(index: int) -> np.ndarray:
        mask = np.zeros((size, size), dtype=bool)
        mask[200:300, 300 : 300 + 100 * (index % 2)] = True
        return mask

    def counted(maps: Drawn, masks: Drawn) -> object:
        return pixel_metrics(count_pixels(maps, masks, bins=bins), samples=20)

    counted(*drawn(4, 16))
    few, many = (peak_of(counted, Drawn(n, map_of), Drawn(n, mask_of)) for n in (100, 200))
    assert many < 60 * 2**20
    assert abs(many - few) <= 100 * (bins + 2) * (4 + 12 + 24) + 2**20
    assert many < 200 * size**2 * 4 / 10
