"""Turn anomaly scores into conformal p-values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csflow.errors import DataError


def p_values(scores: npt.ArrayLike, calibration_scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    r"""Compute conformal p-values of scores against those of held-out good images.

    .. math:: p(s) = \frac{1 + \#\{j : s_j \ge s\}}{n + 1}

    For a part like the calibration parts, ``P(p <= a) <= a`` for every ``a``.

    Args:
        scores: Scores to judge, any shape.
        calibration_scores: Scores of n held-out good images.

    Raises:
        DataError: If a score is not a number or there is no calibration score.
    """
    judged = np.asarray(scores, dtype=np.float64)
    known = np.sort(np.asarray(calibration_scores, dtype=np.float64).ravel())
    if known.size == 0 or np.isnan(known).any() or np.isnan(judged).any():
        raise DataError(
            f"p-values need scores that are numbers; got {int(np.isnan(judged).sum())} NaN among {judged.size} scores "
            f"and {int(np.isnan(known).sum())} NaN among {known.size} calibration scores. Train or calibrate again."
        )
    at_least = known.size - np.searchsorted(known, judged, side="left")
    return np.asarray((1.0 + at_least) / (known.size + 1.0), dtype=np.float64)
