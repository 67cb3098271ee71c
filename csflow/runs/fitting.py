"""Choose a line's images to fit and the folder of its model, and fit the detector in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from csflow.errors import DataError
from csflow.runs.identity import model_code
from csflow.system.cores import BUSY, busy_elsewhere, cores_in_reach
from csflow.system.files import new_directory, sha256_json
from csflow.system.progress import counting, say
from csflow.system.seals import check, put_aside, read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.features.cache_manifest import CacheManifest
    from csflow.flow.distributed import ProcessGroup
    from csflow.flow.training import EpochResult

OnEpoch: TypeAlias = "Callable[[EpochResult], None]"
"""Receives the result of every epoch."""

MODEL, TRAINING = "model.safetensors", "training.json"
"""Files in the folder of a fitted model: what was fitted, and one row per epoch."""


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


def read_epochs(folder: Path) -> list[EpochResult]:
    """Read the epochs in which a model was fitted, after comparing the files of its folder with their seals.

    Args:
        folder: Folder of the model, or a copy of it.

    Returns:
        One result per epoch; none for kinds of detector without epochs.

    Raises:
        DamagedFileError: If a file is missing or damaged.
    """
    from csflow.flow.training import EpochResult

    check(folder / MODEL)
    return [EpochResult(**row) for row in read_sealed_json(folder / TRAINING)["epochs"]]


def fit_here(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    *,
    group: ProcessGroup | None = None,
    held_out: Sequence[str] = (),
) -> None:
    """Fit the detector in this process, alone or as a member of a group; only the first member writes the model.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        folder: Where to write the model; while it trains, the checkpoint is kept in the same folder with the suffix
            ``.work``. A damaged checkpoint is put aside, and training starts over.
        publish: Receives the result of every epoch.
        group: The processes that train together; this process alone by default.
        held_out: SHA-256 of good images that are not fitted, whose likelihood is measured while a flow is trained.

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
        SystemExit: After SIGTERM or SIGINT, once a checkpoint has been written.
    """
    from csflow.detector.fitting import fit_model
    from csflow.detector.model_file import save_model
    from csflow.flow.distributed import ALONE

    group = group or ALONE
    work = folder.with_suffix(".work")
    if group.first:
        _begin(line, len(images), group.size, work)
    with counting() as tell:
        curve = _Curve(publish, tell)
        watched = cached.open(held_out) if held_out else None
        model = fit_model(line, cached.open(images), directory=work, on_epoch=curve.add, group=group, held_out=watched)
    if not group.first:
        return
    with new_directory(folder) as target:
        save_model(model, target / MODEL)  # rounded, so that it is calibrated as it will be stored
        write_sealed_json(target / TRAINING, {"epochs": [asdict(result) for result in curve.results]})
    shutil.rmtree(work, ignore_errors=True)


def _begin(line: LineConfig, images: int, processes: int, work: Path) -> None:
    """Say what begins, and make room for the checkpoint."""
    from csflow.config import KINDS

    if work.exists() and not work.is_dir():
        put_aside(work, f"{work} is not a folder.")
    trained = KINDS[line.detector].epochs
    effort = f", {line.training.epochs} epochs, hidden width {line.flow.hidden}" if trained else ""
    together = f", {processes} processes" if processes > 1 else ""
    say(f"train: {line.detector} on {images} images{effort}{together}")
    if trained and processes == 1:
        _say_if_busy(line)


def _say_if_busy(line: LineConfig) -> None:
    """Say that others use the cores, if the training needs them. The number of threads stays (decision 023)."""
    from csflow.flow.device import choose_device

    busy = busy_elsewhere(seconds=0.25) if choose_device(line.training).type == "cpu" else None
    if busy is not None and busy > BUSY:
        say(
            f"train: other processes keep {busy:.1f} of {cores_in_reach()} cores busy, and epochs take longer; "
            "OMP_NUM_THREADS sets the number of threads"
        )


@dataclass(frozen=True)
class _Curve:
    """The epochs of a training, from its first one: a resumed training reports all of them."""

    publish: OnEpoch
    tell: Callable[[str], None]
    results: list[EpochResult] = field(default_factory=list)

    def add(self, result: EpochResult) -> None:
        self.results.append(replace(result, again=False))
        self.publish(result)
        if not result.again:
            self.tell(
                f"train: epoch {result.epoch}/{result.epochs}  nll {result.nll:+.4f} per dimension  "
                f"gradient {result.grad_norm:.2f}  {result.seconds:.1f} s"
            )
