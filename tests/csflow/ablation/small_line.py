"""A small real line to ablate, and what measuring it gives without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from csflow.ablation.collect import read_results
from csflow.ablation.measure import Bench
from csflow.ablation.plan import make_plan, read_plan
from csflow.ablation.request import Request, Variant
from csflow.ablation.rows import AblationRow, store_row
from csflow.config import DataConfig, FeatureConfig, FlowConfig, LineConfig, RolesConfig, TrainingConfig
from csflow.metrics import Measured
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

LINE = LineConfig(
    line="plates",
    data=DataConfig(path="plates"),
    features=FeatureConfig(image_size=64, scales=2),
    flow=FlowConfig(blocks=1, hidden=4),
    training=TrainingConfig(epochs=1, batch_size=8, precision="float32", device="cpu"),
    roles=RolesConfig(calibrate=0.25, gate=0.15),
)
OTHER = LINE.model_copy(update={"line": "tiles", "data": DataConfig(path="tiles")})


def draw(root: Path, seed: int) -> None:
    """Grained plates; defective ones have a bright blotch and a mask."""
    rng = np.random.default_rng(seed)
    for folder, count in (("ground_truth/blotch", 0), ("train/good", 24), ("test/good", 8), ("test/blotch", 8)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            plate, mask = rng.normal(120, 12, (48, 48)), np.zeros((48, 48), np.uint8)
            if "blotch" in folder:
                mask[10:26, 12:30] = 255
                plate[mask > 0] += 90
                Image.fromarray(mask).save(root / "ground_truth" / "blotch" / f"{number}_mask.png")
            Image.fromarray(np.clip(plate, 0, 255).astype(np.uint8)).save(root / folder / f"{number}.png")


def request(**wanted: Any) -> Request:
    return Request(**{"line": LINE, "groups": ("score",)} | wanted)


def rows_of(folder: Path, workspace: Workspace) -> dict[str, AblationRow]:
    _, summaries = read_results(folder, workspace)
    return {summary.name: row for summary in summaries for row in summary.rows}


def measured_at_once(_: Bench, variant: Variant, key: str, __: Any) -> AblationRow:
    """What measuring gives, without a model."""
    value = Measured(0.9, 0.8, 1.0)
    config = variant.line.model_dump(mode="json")
    return AblationRow(key=key, line=variant.line.line, seed=0, config=config, metrics={"image_auroc": value})


def planned(workspace: Workspace, clamp: float) -> tuple[Path, dict[str, str]]:
    """An ablation that is only planned, and the keys of its three score variants by name."""
    folder = make_plan(request(overrides={"flow.clamp": clamp}), Services.of(workspace))
    return folder, {entry.variant.line.scoring.score: entry.key for entry in read_plan(folder).entries}


def store(workspace: Workspace, key: str, error: str) -> None:
    store_row(workspace, AblationRow(key=key, line="plates", seed=0, config={}, error=error))
