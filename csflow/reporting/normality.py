"""Test if features are normally distributed. Most are not, which is why csflow learns their density with a flow.

A feature is one number of an image's pyramid: always the same channel at the same position. Over the good images of a
line it has a distribution, which a Gaussian model assumes to be normal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError
from csflow.metrics.ranking import Floats

if TYPE_CHECKING:
    from csflow.flow.pyramid import Pyramid


DRAWN = 500
"""Number of features sampled from a pyramid: equally likely, from a fixed seed, none of them picked by hand."""


class NormalFit(NamedTuple):
    """The maximum-likelihood normal distribution of each of K features.

    Attributes:
        mean: ``(K,)``.
        deviation: ``(K,)``, standard deviation; 0 if the feature is constant.
        distance: ``(K,)``, Kolmogorov–Smirnov: largest gap between the two distribution functions; 1 if constant.
    """

    mean: Floats
    deviation: Floats
    distance: Floats

    def only(self, chosen: Sequence[int]) -> NormalFit:
        """Return the fits of some of the features."""
        return NormalFit(*(column[list(chosen)] for column in self))


class FeatureSample(NamedTuple):
    """Some features of many images.

    Attributes:
        values: ``(N, K)``.
        names: Position of each in the pyramid, in words ``(K,)``.
    """

    values: Floats
    names: tuple[str, ...]


class Normality(NamedTuple):
    """The normality of a sample of features.

    Attributes:
        fit: Of every feature.
        limit: Distance that 95 % of truly normal features stay below.
        share: Share of the features above it.
        shown: Indices of features at equal steps of rank by distance, the most normal first.
    """

    fit: NormalFit
    limit: float
    share: float
    shown: list[int]


def sample_features(pyramids: Iterable[Pyramid], *, count: int = DRAWN, seed: int = 0) -> FeatureSample:
    """Read the same random positions and channels of every image's pyramid.

    Args:
        pyramids: One an image, without batch: level ``i`` is ``(C, h, w)``. Read one after the other.
        count: Number of features; fewer if a pyramid has fewer.
        seed: Of the draw.

    Raises:
        DataError: If there are no images.
    """
    rows: list[Floats] = []
    shapes: list[tuple[int, ...]] = []
    chosen = np.zeros(0, dtype=np.int64)
    for pyramid in pyramids:
        if not rows:
            shapes = [tuple(level.shape) for level in pyramid]
            total = sum(int(np.prod(shape)) for shape in shapes)
            chosen = np.sort(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False))
        flat = np.concatenate([np.asarray(level, dtype=np.float64).ravel() for level in pyramid])
        rows.append(flat[chosen])
    if not rows:
        raise DataError("Feature histograms need at least one image, got none. Add good images to the line.")
    return FeatureSample(np.stack(rows), tuple(_position(int(index), shapes) for index in chosen))


def judge_normality(sample: FeatureSample) -> Normality:
    """Fit every feature, find how many are not normal, and choose some to show.

    Raises:
        DataError: As `fit_normal`.
    """
    fit, limit = fit_normal(sample.values), normal_limit(len(sample.values))
    return Normality(fit, limit, float((fit.distance > limit).mean()), representative(fit.distance))


def fit_normal(values: npt.ArrayLike) -> NormalFit:
    """Fit a normal distribution to each column and measure its distance from the data.

    Args:
        values: ``(N, K)``, one feature a column.

    Raises:
        DataError: If a value is not finite, or there are fewer than two rows.
    """
    from scipy import special

    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim != 2 or len(columns) < 2 or not np.isfinite(columns).all():
        raise DataError(
            f"A normal fit needs at least two images and finite features (N, K), got shape {columns.shape} with "
            f"{int((~np.isfinite(columns)).sum())} values that are not finite. Extract the features again."
        )
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    ordered = np.sort((columns - mean) / np.where(deviation > 0, deviation, 1.0), axis=0)
    expected, steps = special.ndtr(ordered), np.arange(len(columns) + 1)[:, None] / len(columns)
    gaps = np.maximum(steps[1:] - expected, expected - steps[:-1]).max(axis=0)
    return NormalFit(mean, deviation, np.where(deviation > 0, gaps, 1.0))


def normal_limit(images: int) -> float:
    """Return the distance that 95 % of truly normal features stay below when mean and deviation are fitted.

    Reference:
        Stephens, JASA 69 (1974), table 1A (Lilliefors' test).
    """
    root = float(np.sqrt(images))
    return 0.895 / (root - 0.01 + 0.85 / root)


def representative(distances: Sequence[float] | Floats, panels: int = 6) -> list[int]:
    """Choose features at equal steps of rank by distance, from the most normal one to the least.

    Args:
        distances: KS distances ``(K,)``.
        panels: Number of features; fewer if there are fewer.

    Returns:
        Indices of the features.
    """
    order = np.argsort(np.asarray(distances), kind="stable")
    ranks = np.linspace(0, order.size - 1, min(panels, order.size)).round().astype(np.int64)
    return [int(order[rank]) for rank in ranks]


def _position(index: int, shapes: Sequence[tuple[int, ...]]) -> str:
    """Describe an index into the flattened pyramid in words."""
    for scale, (channels, height, width) in enumerate(shapes):
        size = channels * height * width
        if index < size:
            channel, row, column = np.unravel_index(index, (channels, height, width))
            return f"scale {scale}, channel {channel}, row {row}, column {column}"
        index -= size
    raise IndexError(index)
