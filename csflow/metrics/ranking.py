"""Compute metrics of a ranking from the mass of each class at each score.

Every function takes masses ``(k, K)``: ``k`` weightings of one ranking (the resamples of a bootstrap, or a single one),
``K`` groups of equal score, **highest first**. A mass is a number of images or pixels, or any other weight. Images and
pixels, exact or binned, whole or resampled, are all measured by these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mass = npt.NDArray[np.number]


class Masses(NamedTuple):
    """The mass of each class at each score ``(k, K)``, highest score first.

    Attributes:
        defective: Defective images or pixels.
        good: Good images or pixels.
        regions: Defective pixels again, weighted so that those of one region sum to 1. For images as ``defective``.
    """

    defective: Mass
    good: Mass
    regions: Mass


Measure = Callable[[Masses], Floats]
"""Returns values ``(k,)``; NaN where a weighting leaves nothing to divide by."""


def auroc(masses: Masses) -> Floats:
    """Return the share of good-defective pairs that are in the right order, ties counting half."""
    defective, good = masses.defective, masses.good
    above, total = np.cumsum(good, axis=1), good.sum(axis=1)
    doubled_wins = (defective * (2 * (total[:, None] - above) + good)).sum(axis=1)
    return np.clip(_divided(doubled_wins, 2 * defective.sum(axis=1) * total), 0.0, 1.0)


def precision_sum(masses: Masses) -> Floats:
    r"""Return the average precision: the precision at each score, weighted by the recall gained there.

    .. math:: \sum_n (R_n - R_{n-1}) P_n

    Reference:
        scikit-learn's ``average_precision_score``: no interpolation, one step for each distinct score.
    """
    found, alarms = _cumulated(masses)
    precision = _divided(found, found + alarms, empty=0.0)
    return _divided((masses.defective * precision).sum(axis=1), found[:, -1])


def best_f1(masses: Masses) -> Floats:
    """Return the largest harmonic mean of precision and recall over all thresholds."""
    found, alarms = _cumulated(masses)
    return np.asarray(_divided(2 * found, found + alarms + found[:, -1:]).max(axis=1), dtype=np.float64)


def lowest_fpr(masses: Masses, tpr: float) -> Floats:
    """Return the lowest false positive rate of a threshold that finds at least ``tpr``; nothing is interpolated."""
    found, alarms = _cumulated(masses)
    first = np.argmax(_divided(found, found[:, -1:]) >= tpr, axis=1)
    return _divided(np.take_along_axis(alarms, first[:, None], axis=1)[:, 0], alarms[:, -1])


def overlap_area(masses: Masses, limit: float) -> Floats:
    r"""Return the area below mean region overlap against false positive rate, up to a rate, divided by that rate.

    .. math:: \frac{1}{f} \int_0^f \mathrm{PRO}(x) \, dx, \quad \mathrm{PRO} = \frac1R \sum_r \frac{|P \cap r|}{|r|}

    The curve is straight between its points, and between the two points on either side of the limit.

    Reference:
        Bergmann et al., IJCV 2021, section 4.2, and MVTec's evaluation code.
    """
    overlap = _divided(np.cumsum(masses.regions, axis=1), masses.regions.sum(axis=1, keepdims=True))
    rate = _divided(np.cumsum(masses.good, axis=1), masses.good.sum(axis=1, keepdims=True))
    rise, width = np.diff(overlap, axis=1, prepend=0.0), np.diff(rate, axis=1, prepend=0.0)
    inside = np.clip(limit - (rate - width), 0.0, width)
    slope_share = _divided(inside, width, empty=0.0)
    area = (inside * (overlap - rise + rise * slope_share / 2)).sum(axis=1)
    return np.asarray(np.clip(area / limit, 0.0, 1.0), dtype=np.float64)


def is_separated(whole: Masses) -> bool:
    """Return True if one class of a single ranking ``(1, K)`` scores above the other throughout.

    Decided from the ranks, because the AUROC of separated classes may be a rounding error away from 1.
    """
    ranks = [np.flatnonzero(mass[0]) for mass in (whole.defective, whole.good)]
    return bool(ranks[0][-1] < ranks[1][0] or ranks[1][-1] < ranks[0][0])


def _cumulated(masses: Masses) -> tuple[Mass, Mass]:
    """Return the found and the falsely alarmed mass when everything from a score upwards counts as defective."""
    return np.cumsum(masses.defective, axis=1), np.cumsum(masses.good, axis=1)


def _divided(part: Mass, whole: Mass, *, empty: float = np.nan) -> Floats:
    """Divide; the ratio is ``empty`` where there is nothing to divide by."""
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), empty)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
