"""Variants over their seeds."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.ablation.groups import variants
from csflow.ablation.plan import PlannedVariant
from csflow.ablation.request import Request
from csflow.ablation.summaries import summarise_variants
from csflow.config import DataConfig, LineConfig
from tests.csflow.ablation.figures import row

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))


def test_seeds_are_put_together_and_a_broken_one_is_left_out() -> None:
    planned = variants(Request(line=LINE, groups=("width",), widths=(8,), seeds=(0, 1, 2, 3)))
    entries = [PlannedVariant(variant=variant, key=str(variant.line.training.seed)) for variant in planned]
    values = [0.91, 0.95, 0.98]
    rows = {str(seed): row(str(seed), 10.0 + seed, value, seed=seed) for seed, value in enumerate(values)}
    rows["2"] = row("2", None, None, seed=2, error="diverged")
    (found,) = summarise_variants(entries, rows)
    assert (found.seeds, len(found.rows), len(found.sound), found.errors) == (4, 3, 2, ("diverged",))
    measured = found.metric("image_auroc")
    assert measured is not None
    assert measured == pytest.approx((0.93, 0.929, 0.931))
    assert found.deviation("image_auroc") == pytest.approx(np.std([0.91, 0.95], ddof=1))
    assert found.milliseconds == pytest.approx(10.5)
    assert found.metric("aupro") is None
