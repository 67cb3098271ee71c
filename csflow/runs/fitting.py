"""Choose a line's images to fit and the folder of its model, and fit the detector in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from csflow.errors import DataError
from csflow.runs.identity import model_code
from csflow.system.files import new_directory, sha256_json, write_json
from csflow.system.progress import counting, say

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.features.cache_manifest import CacheManifest
    from csflow.flow.distributed import ProcessGroup
    from csflow.flow.training import EpochResult

OnEpoch: TypeAlias = "Callable[[EpochResult], None]"
"""Receives the result of every epoch."""


def images_to_fit(line: LineConfig, candidates: list[str]) -> list[str]:
    """Draw the images to fit: ``roles.shots`` of them with the training's seed, or all if it is not set.

    Args:
        line: The line's configuration.
        candidates: SHA-256 of the line's images that have the role *fit*.

    Returns:
        SHA-256 of the images to fit, in the order of the candidates.

    Raises:
        DataError: If there are fewer candidates than ``roles.shots``.
    """
    shots = line.roles.shots
    if shots is None:
        return candidates
    if shots > len(candidates):
        raise DataError(
            f"roles.shots asks for {shots} images to fit, but there are {len(candidates)}. Add images or lower shots."
        )
    drawn = np.random.default_rng(line.training.seed).permutation(len(candidates))[:shots]
    return [candidates[index] for index in sorted(drawn)]


def model_folder(line: LineConfig, cached: CacheManifest, images: list[str], models: Path) -> Path:
    """Name the folder of a model by a digest of everything that determines its weights.

    The number of GPUs is left out: it changes the weights only by rounding.

    Args:
        line: The line's configuration.
        cached: The features that the model is fitted to.
        images: SHA-256 of the images to fit.
        models: Folder of all models.

    Returns:
        A folder in ``models``, which exists once the model has been fitted.
    """
    return models / sha256_json([cached.space, images, line.training_digest(), model_code(line)])


def fit_here(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    *,
    group: ProcessGroup | None = None,
) -> None:
    """Fit the detector in this process, alone or as a member of a group; only the first member writes the model.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        folder: Where to write the model; while it trains, the checkpoint is kept in the same folder with the suffix
            ``.work``.
        publish: Receives the result of every epoch.
        group: The processes that train together; this process alone by default.

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
        SystemExit: After SIGTERM or SIGINT, once a checkpoint has been written.
    """
    from csflow.config import KINDS
    from csflow.detector.fitting import fit_model
    from csflow.detector.model_file import save_model
    from csflow.flow.distributed import ALONE

    group = group or ALONE
    work = folder.with_suffix(".work")
    trained = KINDS[line.detector].epochs
    if group.first:
        effort = f", {line.training.epochs} epochs, hidden width {line.flow.hidden}" if trained else ""
        together = f", {group.size} processes" if group.size > 1 else ""
        say(f"train: {line.detector} on {len(images)} images{effort}{together}")
    with counting() as tell:
        history = _History(work / "history.json", publish, tell)
        model = fit_model(line, cached.open(images), directory=work, on_epoch=history.add, group=group)
    if not group.first:
        return
    if trained:
        history.finish(line.training.epochs)
    with new_directory(folder) as target:
        save_model(model, target / "model.safetensors")  # rounded, so that it is calibrated as it will be stored
        write_json(target / "training.json", history.rows)
    shutil.rmtree(work, ignore_errors=True)


class _History:
    """The epochs so far, stored on disk so that a resumed training still shows its whole curve."""

    def __init__(self, path: Path, publish: OnEpoch, tell: Callable[[str], None] = say) -> None:
        self.path = path
        self.publish = publish
        self.tell = tell
        self.rows: list[dict[str, Any]] = []

    def add(self, result: EpochResult) -> None:
        if not self.rows:
            self._restore(before=result.epoch)
        self.rows.append(asdict(result))
        write_json(self.path, self.rows)
        self.publish(result)
        self.tell(
            f"train: epoch {result.epoch}/{result.epochs}  nll {result.nll:+.4f} per dimension  "
            f"gradient {result.grad_norm:.2f}  {result.seconds:.1f} s"
        )

    def finish(self, epochs: int) -> None:
        """Restore the epochs of a run that was killed after its last one: training does not report them again."""
        if not self.rows:
            self._restore(before=epochs + 1)

    def _restore(self, *, before: int) -> None:
        """Read the killed run's epochs up to its checkpoint; later ones are trained again."""
        from csflow.flow.training import EpochResult

        rows = json.loads(self.path.read_text()) if self.path.exists() else []
        self.rows = [row for row in rows if row["epoch"] < before]
        for row in self.rows:
            self.publish(EpochResult(**row))
