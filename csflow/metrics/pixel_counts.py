"""Count the pixels of many maps into common bins, image by image: all that pixel metrics need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from csflow.detector.heatmap import upsample
from csflow.errors import DataError
from csflow.metrics.intervals import Counts, Labels
from csflow.metrics.ranking import Floats, Masses

Maps = Sequence[npt.NDArray[np.floating]]
Masks = Sequence[npt.NDArray[np.bool_]]
Singles = npt.NDArray[np.float32]

# Pixels of each class sampled to choose the bins: 4 MiB each, for any number and size of images.
_SAMPLE = 1_000_000


@dataclass(frozen=True)
class PixelCounts:
    """The number of good and defective pixels of each image in each bin of map values, highest bin first.

    An image is *defective* if its mask marks a pixel, and *good* otherwise, whatever its label says. The counts of any
    set of images are a weighted sum of these rows, so subsets and resamples do not read the maps again.

    Attributes:
        edges: Values ``(B - 1,)`` between the bins, ascending; a bin contains its lower edge but not its upper one.
        good: Good pixels ``(n, B)`` of every image, those of defective images included.
        rows: Indices ``(m,)`` of the defective images.
        defective: Defective pixels ``(m, B)``.
        regions: Sums ``(m, B)`` of 1 / (size of its region in pixels) over the defective pixels.
    """

    edges: Singles
    good: npt.NDArray[np.uint32]
    rows: Counts
    defective: npt.NDArray[np.uint32]
    regions: Floats

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.good)

    @property
    def is_defective(self) -> Labels:
        """Return a mask ``(n,)`` of the images that have a defective pixel."""
        marked = np.zeros(len(self), dtype=bool)
        marked[self.rows] = True
        return marked

    def only(self, chosen: npt.ArrayLike) -> PixelCounts:
        """Return the counts of some of the images.

        Args:
            chosen: ``(n,)``, True = stays.
        """
        stays = np.asarray(chosen, dtype=bool)
        defective = stays[self.rows]
        return replace(
            self,
            good=self.good[stays],
            rows=np.flatnonzero(self.is_defective[stays]),
            defective=self.defective[defective],
            regions=self.regions[defective],
        )

    def masses(self, times: Counts | None = None) -> Masses:
        """Sum the pixels in each bin over all images.

        Args:
            times: How often each image counts ``(k, n)``; once if None.

        Returns:
            Masses ``(k, B)``.
        """
        weights = np.ones((1, len(self)), dtype=np.int64) if times is None else times
        defective = weights[:, self.rows]
        return Masses(_sums(defective, self.defective), _sums(weights, self.good), _sums(defective, self.regions))


def count_pixels(maps: Maps, masks: Masks, *, bins: int = 4096) -> PixelCounts:
    """Count the pixels of every image, in two passes over the maps.

    The first pass samples pixels to choose the bins: half of the bins hold equally many good pixels, half equally many
    defective ones, and one begins at the lowest pixel of each class, so that perfectly separated maps stay separated.
    The second pass counts every pixel. Each map is upsampled to its mask, in float32.

    Memory: 4 bytes for each bin and image, 12 more for each bin and defective image (16 and 64 KiB an image with 4096
    bins; 24 more instead of 12 for a moment), 32 MiB to choose the bins, and some copies of a single image at 40 bytes
    a pixel together, for any number and size of maps.

    Args:
        maps: Anomaly maps ``(h, w)``, one an image.
        masks: Ground truth ``(H, W)``, True = defective; all False for a good image. Both are read twice, one item
            after the other, so sequences that load their items on demand keep memory small.
        bins: Wanted number of bins; fewer result where values repeat. More make `csflow.metrics.binning_error` smaller.

    Raises:
        DataError: If lengths differ, a map or its values are unusable, or all pixels are of one class.
    """
    edges = _edges(maps, masks, bins)
    good = np.zeros((len(maps), edges.size + 1), dtype=np.uint32)
    rows, defective, regions = [], [], []
    for row, (pixels, mask) in enumerate(pixels_of(maps, masks)):
        good[row] = _histogram(edges, np.sort(pixels[~mask]))
        if mask.any():
            rows.append(row)
            defective.append(_histogram(edges, pixels[mask]).astype(np.uint32))
            regions.append(_histogram(edges, pixels[mask], region_weights(mask)))
    return PixelCounts(edges, good, np.array(rows, dtype=np.int64), np.stack(defective), np.stack(regions))


def pixels_of(maps: Maps, masks: Masks) -> Iterator[tuple[Singles, Labels]]:
    """Yield the map and the mask of each image, both ``(H, W)``, one image at a time.

    Raises:
        DataError: If lengths differ, or a map is not two-dimensional or not finite.
    """
    if len(maps) != len(masks):
        raise DataError(f"Pixel metrics need one mask for each map, got {len(maps)} maps and {len(masks)} masks.")
    for index in range(len(maps)):
        truth = np.asarray(masks[index], dtype=bool)
        if truth.ndim != 2:
            raise DataError(f"Expected masks (H, W), got shape {truth.shape} for image {index}. Pass grey masks.")
        pixels = upsample(np.asarray(maps[index]), (truth.shape[1], truth.shape[0]))
        if not np.isfinite(pixels).all():
            raise DataError(f"Map {index} holds infinite values in float32. Train the detector again.")
        yield pixels, truth


def region_weights(mask: Labels) -> Floats:
    """Return 1 / (size of its region in pixels) for each defective pixel, in the order of ``values[mask]``.

    Pixels that touch by a side or a corner are of the same region.
    """
    from scipy import ndimage

    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=np.int64))
    inside = labelled[mask]
    return np.asarray(1.0 / np.bincount(inside)[inside], dtype=np.float64)


def missing_class(defective: int, good: int) -> DataError:
    """Return the error to raise when all pixels are of one class."""
    return DataError(
        f"Pixel metrics need defective and good pixels, got {defective} and {good}. Add masks of defective images."
    )


def _edges(maps: Maps, masks: Masks, bins: int) -> Singles:
    rng = np.random.default_rng(0)
    limit = max(1, _SAMPLE // max(1, len(maps)))
    samples: dict[bool, list[Singles]] = {False: [], True: []}
    lowest = {False: np.inf, True: np.inf}
    totals = {False: 0, True: 0}
    for pixels, mask in pixels_of(maps, masks):
        for kind in samples:
            values = pixels[mask == kind]
            if values.size:
                totals[kind] += values.size
                lowest[kind] = min(lowest[kind], float(values.min()))
                samples[kind].append(values if values.size <= limit else values[rng.integers(values.size, size=limit)])
    if not all(totals.values()):
        raise missing_class(totals[True], totals[False])
    quantiles = [_order_statistics(np.concatenate(kept), bins // 2) for kept in samples.values()]
    return np.unique(np.concatenate([*quantiles, np.array(list(lowest.values()), dtype=np.float32)]))


def _order_statistics(values: Singles, count: int) -> Singles:
    """Return values that split a sample into parts of equal size; values that occur, so that ties share a bin."""
    return np.asarray(np.sort(values)[np.linspace(0, values.size - 1, max(count, 1)).astype(np.intp)])


def _histogram(edges: Singles, values: Singles, weights: Floats | None = None) -> npt.NDArray[np.generic]:
    bins = edges.size - np.searchsorted(edges, values, side="right")
    return np.bincount(bins, weights=weights, minlength=edges.size + 1)


def _sums(times: Counts, table: npt.NDArray[np.generic]) -> Floats:
    """Compute ``times @ table`` in float64, without a copy of a long table in float64."""
    block = 512
    total = np.zeros((len(times), table.shape[1]))
    for start in range(0, len(table), block):
        total += times[:, start : start + block].astype(np.float64) @ table[start : start + block].astype(np.float64)
    return total
