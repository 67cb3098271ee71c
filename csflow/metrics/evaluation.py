"""Compute the metrics of a detector on a line's test images, from scores and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from csflow.data.images import size_of
from csflow.data.manifest import Manifest
from csflow.data.masks import read_mask
from csflow.metrics import (
    Maps,
    Measured,
    PixelCounts,
    PixelMetric,
    binning_error,
    count_pixels,
    image_metrics,
    pixel_metrics,
)

MapStack: TypeAlias = Maps | npt.NDArray[np.floating]
"""Anomaly maps ``(N, h, w)``: an array, or a sequence that loads one map on demand."""


class MaskSequence(Sequence[npt.NDArray[np.bool_]]):
    """Ground truth ``(H, W)`` of each image, read on demand: thousands of masks are never in memory at once."""

    def __init__(self, manifest: Manifest) -> None:
        self._items = list(zip(manifest.files, manifest.frame["mask"], strict=True))
        self._root = manifest.root

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.bool_]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[npt.NDArray[np.bool_]]: ...

    def __getitem__(self, index: int | slice) -> npt.NDArray[np.bool_] | Sequence[npt.NDArray[np.bool_]]:
        """Read the mask of one image; all False for a good one."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file, mask = self._items[index]
        if mask:
            return read_mask(self._root / mask)
        width, height = size_of(file)
        return np.zeros((height, width), dtype=bool)


class MetricsFound(NamedTuple):
    """Metrics of test images.

    Attributes:
        metrics: Every metric with its 95 % interval; those of pixels only if there are masks.
        binning_error: Bound of how far each pixel metric can be from the exact one; empty without masks.
    """

    metrics: dict[str, Measured]
    binning_error: dict[PixelMetric, float]


def measured_on(test: Manifest, scores: npt.NDArray[np.float32], maps: MapStack) -> dict[str, Measured]:
    """Measure every metric of the test images with its 95 % interval; those of pixels only if there are masks.

    Pixel metrics are those of binned maps: `measured_with_error` also bounds their error.

    Args:
        test: The test images ``(N,)``, good and defective.
        scores: Their anomaly scores ``(N,)``.
        maps: Their anomaly maps ``(N, h, w)``, an array or a sequence that loads one map on demand.

    Raises:
        DataError: If one kind of images is missing, or an image or a mask cannot be read.
    """
    return measured_with_error(test, scores, maps).metrics


def measured_with_error(test: Manifest, scores: npt.NDArray[np.float32], maps: MapStack) -> MetricsFound:
    """Measure as `measured_on`, and bound the error that binning the maps can cause.

    Args:
        test: The test images ``(N,)``, good and defective.
        scores: Their anomaly scores ``(N,)``.
        maps: Their anomaly maps ``(N, h, w)``; all are read twice, one after the other.

    Raises:
        DataError: As `measured_on`.
    """
    labels = (test.frame["label"] == "defective").to_numpy()
    found: dict[str, Measured] = {}
    found.update(image_metrics(scores, labels).items())
    if (counted := count_test_pixels(test, maps)) is None:
        return MetricsFound(found, {})
    found.update(pixel_metrics(counted[1]).items())
    return MetricsFound(found, binning_error(counted[1]))


def counted_pixels(test: Manifest, *maps: MapStack) -> tuple[PixelCounts, ...]:
    """Count the pixels of each detector's maps over the same images, for a comparison.

    Good images count, and those defective ones that have a mask.

    Args:
        test: The test images ``(N,)``.
        maps: Of each detector, ``(N, h, w)``.

    Returns:
        The counts of each detector; empty without masks.

    Raises:
        DataError: If an image or a mask cannot be read.
    """
    counted = [count_test_pixels(test, each) for each in maps]
    return tuple(found[1] for found in counted if found is not None)


class _Chosen(Sequence[npt.NDArray[np.floating]]):
    """Some of many maps, each loaded on demand: neither copied nor kept."""

    def __init__(self, maps: MapStack, rows: Sequence[int]) -> None:
        self._maps, self._rows = maps, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.floating]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[npt.NDArray[np.floating]]: ...

    def __getitem__(self, index: int | slice) -> npt.NDArray[np.floating] | Sequence[npt.NDArray[np.floating]]:
        if isinstance(index, slice):
            return _Chosen(self._maps, self._rows[index])
        return self._maps[self._rows[index]]


def count_test_pixels(test: Manifest, maps: MapStack) -> tuple[Manifest, PixelCounts] | None:
    """Count the pixels of good images and of those defective ones that have a mask.

    Returns:
        These images and their counts; None without any mask.
    """
    known = ((test.frame["mask"] != "") | (test.frame["label"] == "good")).to_numpy()
    if not (test.frame["mask"] != "").any():
        return None
    chosen = Manifest(test.frame[known].reset_index(drop=True), test.root)
    return chosen, count_pixels(_Chosen(maps, np.flatnonzero(known).tolist()), MaskSequence(chosen))
