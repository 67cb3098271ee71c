"""Find the model that was fitted to equal inputs before, or fit a new one on as many GPUs as the line requests."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import DamagedFileError
from csflow.runs.fitting import OnEpoch, fit_here, model_folder, read_epochs
from csflow.runs.torchrun import fit_together
from csflow.system.files import new_directory
from csflow.system.locks import held
from csflow.system.progress import say
from csflow.system.seals import put_aside

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.features.cache_manifest import CacheManifest
    from csflow.flow.training import EpochResult


def find_or_fit(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    models: Path,
    publish: OnEpoch = lambda result: None,
    *,
    processes: int | None = None,
    held_out: Sequence[str] = (),
) -> Path:
    """Find the model that was fitted to equal inputs before, or fit a new one; resume a training that was killed.

    A damaged model is put aside and fitted again. While another process fits the same model, this one waits for it.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        models: Folder of all models; each has a subfolder named by the digest of its inputs.
        publish: Receives the result of every epoch, also those of a model that was found.
        processes: How many processes train together; the number changes the result only by rounding. By default
            :func:`processes_for` decides.
        held_out: SHA-256 of good images that are not fitted, whose likelihood is measured while a flow is trained; a
            model that is found may have been trained without.

    Returns:
        The folder with ``model.safetensors`` and ``training.json``.

    Raises:
        DataError: If there are too few images.
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    folder = model_folder(line, cached, images, models)
    with held(folder.with_name(f".{folder.name}.lock"), f"the training {folder.name[:12]}"):
        return _found_or_fitted(line, cached, images, folder, publish, processes, held_out)


def _found_or_fitted(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    processes: int | None,
    held_out: Sequence[str],
) -> Path:
    """Find or fit the model while no other process does."""
    known = _sound_epochs(folder) if folder.exists() else None
    if known is not None:
        say(f"train: found the model of these {len(images)} images, configuration and seed")
        for result in known:
            publish(result)
        return folder
    count = processes_for(line) if processes is None else processes
    if count == 1:
        fit_here(line, cached, images, folder, publish, held_out=held_out)
    else:
        fit_together(line, cached, images, folder, publish, processes=count, held_out=held_out)
    return folder


def processes_for(line: LineConfig) -> int:
    """Count the processes that train a line on this machine.

    Returns:
        ``resources.gpus`` if the machine has that many GPUs and the detector trains in epochs, but at most one process
        per image of a batch; otherwise 1.
    """
    wanted = line.resources.gpus
    if wanted < 2 or line.training.device not in ("auto", "cuda"):
        return 1
    import torch

    from csflow.config import KINDS

    here = torch.cuda.device_count()
    if not KINDS[line.detector].epochs or here < wanted:
        say(
            f"train: {line.detector} trains in one process although resources.gpus is {wanted}: this machine has "
            f"{here} CUDA devices, and only kinds of detector with epochs train in several processes"
        )
        return 1
    return min(wanted, line.training.batch_size)


def checked_copy(
    line: LineConfig, cached: CacheManifest, images: list[str], models: Path, copy: Path
) -> list[EpochResult]:
    """Read a copy of a line's model; a damaged one is replaced by the model, which is fitted again if need be.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images that were fitted.
        models: Folder of all models.
        copy: Folder of the copy.

    Returns:
        The epochs in which the model was fitted.
    """
    known = _sound_epochs(copy)
    if known is not None:
        return known
    folder = find_or_fit(line, cached, images, models)
    with new_directory(copy) as target:
        shutil.copytree(folder, target, dirs_exist_ok=True)
    return read_epochs(copy)


def _sound_epochs(folder: Path) -> list[EpochResult] | None:
    """Read the epochs of a fitted model; put the model aside and return ``None`` if it is damaged."""
    try:
        return read_epochs(folder)
    except DamagedFileError as error:
        put_aside(folder, str(error))
        return None
