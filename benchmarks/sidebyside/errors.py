"""Measure the error of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ``‖a - b‖ / ‖b‖`` over all levels, in float64."""
    pairs = [(a.detach().double().cpu(), b.double().cpu()) for a, b in zip(found, expected, strict=True)]
    wrong = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((wrong / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def largest_relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest ``|a - b| / |b|``."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
