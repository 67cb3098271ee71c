"""Calibrate thresholds that promise a false-alarm rate, from good images that no model was trained on.

The paper does not say how to choose the threshold. Both kinds of calibration take an order statistic of the scores of
``n`` held-out good images, so they assume nothing about the distribution of the scores, only that new good parts come
from the same process (exchangeability). A part is defective when its score *exceeds* the threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from csflow.config import CalibrationConfig
from csflow.detector.heatmap import ColourScale
from csflow.detector.p_values import p_values
from csflow.errors import DataError, ModelError

CalibrationKind = Literal["conformal", "tolerance", "none"]
Decision = Literal["good", "defective"]

_SPREAD = (1.05, 5.0)
"""Least and largest ratio of region threshold and median pixel that the colours follow."""

_HEADROOM = 1.25
"""How far the colours reach, in units of the logarithmic distance between region threshold and strongest defect."""

_LEAST_ABOVE = 1.25
"""Least ratio of the top of the scale and the region threshold, for detectors that hardly answer to defects."""

_TINY = 1e-12

# Slack of the binomial tail, for floating point only: 1 - 0.5**2 must reach a confidence of 0.75.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Calibration:
    """The threshold of a detector and what it promises.

    Attributes:
        kind: ``conformal``, ``tolerance``, or ``none`` (scores without decisions).
        alpha: False-alarm rate promised; None for ``none``.
        confidence: Probability that the promise holds for this very threshold; None unless ``tolerance``.
        threshold: Scores above it are defective.
        region_threshold: Map values above it belong to a defective region; the same rule on image maxima.
        map_range: Map values at the bottom and top of the colour scale, the same for all images; see :attr:`scale`.
        scores: Scores of the calibration images, ascending; p-values are computed from them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: CalibrationKind
    alpha: float | None
    confidence: float | None
    threshold: float | None
    region_threshold: float | None
    map_range: tuple[float, float]
    scores: tuple[float, ...]

    @property
    def n(self) -> int:
        """Return the number of calibration images."""
        return len(self.scores)

    @property
    def scale(self) -> ColourScale:
        """Return the fixed colours of the maps."""
        return ColourScale.of(self.map_range, self.region_threshold)

    @property
    def statement(self) -> str:
        """Return one sentence for people that says what is promised and on what grounds."""
        if self.kind == "none" or self.alpha is None:
            return "Scores without decisions: calibration is 'none', so no false-alarm rate is promised."
        grounds = f"from {self.n} held-out good images, for parts made like them"
        if self.confidence is None:
            return (
                f"At most {100 * self.alpha:.4g} % of good parts are called defective, on average over calibration "
                f"draws (alpha = {self.alpha:g}, split conformal {grounds})."
            )
        return (
            f"With {100 * self.confidence:.4g} % confidence at most {100 * self.alpha:.4g} % of good parts are called "
            f"defective (alpha = {self.alpha:g}, tolerance limit {grounds})."
        )

    def decide(self, score: float) -> Decision | None:
        """Decide ``defective`` if the score exceeds the threshold, else ``good``; None without a threshold.

        Raises:
            ModelError: If the score is not a number: it must never pass as good.
        """
        if math.isnan(score):
            raise ModelError("The anomaly score is not a number. Load or train the detector again.")
        if self.threshold is None:
            return None
        return "defective" if score > self.threshold else "good"

    def p_value(self, score: float) -> float | None:
        """Compute the conformal p-value.

        With the ``conformal`` kind it is at most alpha exactly if the part is called defective.
        """
        return None if self.kind == "none" else float(p_values(score, self.scores))

    def surprise(self, false_alarms: int, good_images: int) -> float | None:
        """Compute the probability of at least so many false alarms on new good images like the calibration images.

        Exact, whatever the scores' distribution: how many of m exchangeable scores exceed the k-th of n is
        beta-binomial. A tiny value means that the new images come from another process.

        Args:
            false_alarms: Number of new good images called defective.
            good_images: Number of new good images.

        Returns:
            The probability, or None without a threshold.
        """
        if self.alpha is None:
            return None
        from scipy import stats

        rank = threshold_rank(self.n, self.alpha, self.confidence)
        return float(stats.betabinom.sf(false_alarms - 1, good_images, self.n - rank + 1, rank))

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values that :meth:`from_json` reads."""
        return json.loads(json.dumps({**asdict(self), "n": self.n}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Calibration:
        """Read what :meth:`to_json` returned.

        Raises:
            ModelError: If a field is missing, unknown or of the wrong type, or the scores do not belong to it.
        """
        fields = {key: item for key, item in value.items() if key != "n"}
        try:
            calibration = TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ModelError(f"The calibration cannot be read: {where}. Calibrate the detector again.") from error
        complete = calibration.kind == "none" or None not in (calibration.alpha, calibration.threshold)
        if not complete or value.get("n", calibration.n) != calibration.n:
            raise ModelError(
                f"The calibration of kind {calibration.kind!r} with n = {value.get('n')} has {calibration.n} scores "
                f"and threshold {calibration.threshold}. Its file was changed: calibrate the detector again."
            )
        return calibration


def calibrate(
    scores: npt.ArrayLike,
    maps: npt.ArrayLike,
    config: CalibrationConfig | Literal["none"],
    *,
    reach: float | None = None,
) -> Calibration:
    """Derive thresholds and the colour scale from held-out good images.

    The colour scale begins at the median pixel of these images, has the region threshold in its middle, and ends a
    little above ``reach``, because kinds of detector differ by orders of magnitude in how they answer to a defect.

    Args:
        scores: Anomaly scores ``(n,)``.
        maps: Anomaly maps ``(n, h, w)`` at the resolution of the finest latent.
        config: The rule, or ``"none"`` for scores without decisions.
        reach: Largest map value of defects drawn on these images; guessed from the spread of the maps if it is None.

    Raises:
        DataError: If there are fewer images than the promise needs, or a value is not finite.
    """
    ordered, maxima = _checked(scores, maps)
    if config == "none":
        _, mark, top = _colour_scale(float(maxima[-1]), maps, reach)
        unmarked = ColourScale.range_around(mark, top)
        return Calibration("none", None, None, None, None, unmarked, tuple(ordered.tolist()))
    rank = threshold_rank(ordered.size, config.alpha, config.confidence)
    threshold, region = float(ordered[rank - 1]), float(maxima[rank - 1])
    bottom, _, top = _colour_scale(region, maps, reach)
    return Calibration(
        kind="conformal" if config.confidence is None else "tolerance",
        alpha=config.alpha,
        confidence=config.confidence,
        threshold=threshold,
        region_threshold=region,
        map_range=(bottom, top),
        scores=tuple(ordered.tolist()),
    )


def threshold_rank(n: int, alpha: float, confidence: float | None) -> int:
    r"""Compute the rank of the threshold among n calibration scores, ascending from 1.

    Split conformal (no confidence): :math:`k = \lceil (n+1)(1-\alpha) \rceil`. Tolerance limit: the
    smallest k with :math:`P(\mathrm{Bin}(n, 1-\alpha) \le k-1) \ge` confidence; that is the probability
    that fewer than k of n scores are below the true (1 - alpha) quantile, so that the k-th is above it.

    Raises:
        DataError: If n is too small for the promise; names the number of images that is enough.

    Reference:
        Vovk, Gammerman, Shafer 2005 (conformal); Wilks 1941 (tolerance limits).
    """
    rank = _conformal_rank(n, alpha) if confidence is None else _tolerance_rank(n, alpha, confidence)
    if rank > n:
        sure = "" if confidence is None else f" with {100 * confidence:g} % confidence"
        raise DataError(
            f"{n} good images are held out for calibration, but a false-alarm rate of at most {100 * alpha:g} %{sure} "
            f"needs at least {required_images(alpha, confidence)}. Add good images, raise roles.calibrate or "
            "calibration.alpha, or set 'calibration: none' for scores without decisions."
        )
    return rank


def required_images(alpha: float, confidence: float | None = None) -> int:
    """Compute the least number of calibration images for which a threshold with this promise exists."""
    if confidence is None:
        return math.ceil(1 / _exact(alpha)) - 1
    n = max(1, math.floor(math.log1p(-confidence) / math.log1p(-alpha)) - 1)
    while _tolerance_rank(n, alpha, confidence) > n:
        n += 1
    return n


def _exact(alpha: float) -> Fraction:
    # The decimal the user wrote: in binary 10 * (1 - 0.1) is 9.000…1 or 9 by luck, and its ceiling 10 or 9.
    return Fraction(repr(float(alpha)))


def _conformal_rank(n: int, alpha: float) -> int:
    return math.ceil((n + 1) * (1 - _exact(alpha)))


def _tolerance_rank(n: int, alpha: float, confidence: float) -> int:
    from scipy import stats

    tail = stats.binom.cdf(np.arange(n), n, 1.0 - alpha)
    return int(np.searchsorted(tail, confidence - _ROUNDING, side="left")) + 1


def _checked(scores: npt.ArrayLike, maps: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scores and maxima of the maps, both ascending."""
    values, stack = np.asarray(scores, dtype=np.float64), np.asarray(maps, dtype=np.float64)
    if values.ndim != 1 or stack.ndim != 3 or len(values) != len(stack) or stack.size == 0:
        raise DataError(
            f"Calibration needs one score and one map (h, w) for each of at least one held-out good image, "
            f"got scores {values.shape} and maps {stack.shape}. Add good images or raise roles.calibrate."
        )
    broken = int((~np.isfinite(values)).sum() + (~np.isfinite(stack)).sum())
    if broken:
        raise DataError(f"{broken} calibration scores or map values are not finite. Train the detector again.")
    return np.sort(values), np.sort(stack.max(axis=(1, 2)))


def _colour_scale(mark: float, maps: npt.ArrayLike, reach: float | None) -> ColourScale:
    """Return the scale from the median pixel of good images to a quarter more than ``reach``, logarithmically."""
    mark = max(mark, _TINY)
    spread = mark / max(float(np.median(np.asarray(maps))), _TINY)
    spread = min(max(spread, _SPREAD[0]), _SPREAD[1])
    above = spread**3 if reach is None else (reach / mark) ** _HEADROOM if reach > mark else 0.0
    return ColourScale(_rounded(mark / spread), mark, _rounded(mark * max(above, _LEAST_ABOVE)))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
