"""The settings of a run, as they are passed from process to process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

WORKS = (
    "limit", "train_step", "memory", "epoch", "train", "store_read", "extract", "retrain", "grow",
    "score_one", "score_batch", "load", "model_file",
)  # fmt: skip

SCALES = 3  # the authors' code and anomalib know no other number


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        works: Which works, names of ``WORKS``.
        backbone: timm name of the trunk, cut after stage 6.
        size: Side of the largest input in pixels.
        scales: Levels of the pyramid; peers need 3.
        width: Hidden channels of the flow.
        batch: Images of a training step and of a scored batch (``score_batch``).
        score_batch: Images scored at once.
        images: Images extracted, trained on and scored.
        precision: Of our training: ``auto``, ``float32`` or ``bfloat16``. Peers run in float32, as published.
        device: ``cpu`` or ``cuda``.
        epochs: Of the work ``train``.
        repeats: Measured repeats; the median counts.
        seed: Of weights and drawn images.
        threads: Threads of every process.
        folder: Folder of the images to use; without it, images are drawn.
    """

    works: tuple[str, ...] = WORKS
    backbone: str = "tf_efficientnet_lite0"
    size: int = 384
    scales: int = SCALES
    width: int = 256
    batch: int = 16
    score_batch: int = 32
    images: int = 64
    precision: str = "auto"
    device: str = "cpu"
    epochs: int = 3
    repeats: int = 5
    seed: int = 0
    threads: int = 2
    folder: str | None = None

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the settings that :meth:`save` wrote."""
        fields = json.loads(path.read_text())
        return cls(**{**fields, "works": tuple(fields["works"])})
