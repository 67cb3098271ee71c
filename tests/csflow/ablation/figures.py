"""Rows and summaries with given figures, written by hand."""

from __future__ import annotations

import numpy as np

from csflow.ablation.groups import variants
from csflow.ablation.plan import PlannedVariant
from csflow.ablation.request import Request
from csflow.ablation.rows import AblationRow
from csflow.ablation.summaries import VariantSummary, summarise_variants
from csflow.ablation.timing import Timing
from csflow.config import DataConfig, LineConfig
from csflow.metrics import Measured

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"))
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def row(
    key: str, ms: float | None, auroc: float | None, *, width: float = 0.001, seed: int = 0, error: str = ""
) -> AblationRow:
    """A row whose two AUROCs are equal."""
    timing = None if ms is None else Timing(
        median_ms=ms, p95_ms=2 * ms, repetitions=9, threads=2, machine="here", load=0.5
    )  # fmt: skip
    measured = None if auroc is None else Measured(auroc, auroc - width, min(1.0, auroc + width))
    metrics = {} if measured is None else {"image_auroc": measured, "synthetic_auroc": measured}
    return AblationRow(key=key, line="tiles", seed=seed, config={}, metrics=metrics, timing=timing, error=error)


def made(
    *, crowded: bool = False, metrics: tuple[str, ...] = ("image_auroc", "synthetic_auroc")
) -> list[VariantSummary]:
    """Tables 3 and 4 and some widths over two seeds; one variant broken."""
    request = Request(line=LINE, groups=("scales", "blocks", "width"), widths=WIDTHS, seeds=(0, 1))
    draw, rows, entries = np.random.default_rng(0), {}, []
    for variant in variants(request):
        key = variant.line.method_digest()
        entries.append(PlannedVariant(variant=variant, key=key))
        if variant.name == "2 blocks":
            rows[key] = AblationRow(
                key=key, line="tiles", seed=0, config={}, error="It <b>diverged</b> | badly\nat epoch 3."
            )
            continue
        spread = 0.01 if crowded else 1.0
        ms, auroc = float(20 * np.exp(spread * draw.normal())), float(0.95 + 0.02 * spread * draw.normal())
        timing = Timing(median_ms=ms, p95_ms=ms + 1, repetitions=9, threads=2, machine="a core", load=0.5)
        measured = dict.fromkeys(metrics, Measured(auroc, auroc - 0.01, auroc + 0.01))
        seed = variant.line.training.seed
        rows[key] = AblationRow(key=key, line="tiles", seed=seed, config={}, git_rev="f00", metrics=measured,
                                timing=timing, parameters=1234, training_seconds=9.0)  # fmt: skip
    return summarise_variants(entries, rows)
