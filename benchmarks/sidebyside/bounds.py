"""The errors above which a fast result does not count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sidebyside.rows import Row

LATENTS = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative error of the latents against float64, by precision."""

LEARNED = {"float32": 1e-2, "bfloat16": 1e-1}
"""Relative difference between our loss reduction and that of the authors' code, from equal weights in equal steps.

It is wider than that of the latents: the two losses differ little, and rounding errors add up from step to step.
"""

FEATURES = 1e-4
"""Relative error of extracted features against eager float32 timm, both rounded to half precision as stored."""

SCORES = 1e-3
"""Largest relative error of a score against the float32 torch pipeline."""


def broken(rows: Sequence[Row], precision: str) -> list[str]:
    """State every bound that does not hold, one sentence each; a figure that is not a number meets no bound.

    Only our own results are bounded: what a peer computes is shown, not judged.
    """
    limits = {
        "latents": LATENTS[precision],
        "learned": LEARNED[precision],
        "features": FEATURES,
        "scores": SCORES,
        "decisions": 0.0,
    }
    return beyond(rows, limits)


def beyond(rows: Sequence[Row], limits: Mapping[str, float]) -> list[str]:
    """State every error that is larger than its limit, one sentence each; errors without a limit are not judged."""
    return [
        f"{row.work}: {name} differ by {value:.3g}, allowed is {limits[name]:.3g}."
        for row in rows
        for name, value in (row.accuracy or {}).items()
        if name in limits and not (math.isfinite(value) and value <= limits[name])
    ]
