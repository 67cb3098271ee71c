"""Find the model that was fitted to equal inputs before, or fit a new one on as many GPUs as the line requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.runs.fitting import OnEpoch, fit_here, model_folder
from csflow.runs.torchrun import fit_together
from csflow.system.locks import held
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.features.cache_manifest import CacheManifest


def find_or_fit(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    models: Path,
    publish: OnEpoch = lambda result: None,
    *,
    processes: int | None = None,
) -> Path:
    """Find the model that was fitted to equal inputs before, or fit a new one; resume a training that was killed.

    While another process fits the same model, this one waits for it.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        models: Folder of all models; each has a subfolder named by the digest of its inputs.
        publish: Receives the result of every epoch, also those of a model that was found.
        processes: How many processes train together; the number changes the result only by rounding. By default
            :func:`processes_for` decides.

    Returns:
        The folder with ``model.safetensors`` and ``training.json``.

    Raises:
        DataError: If there are too few images.
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    folder = model_folder(line, cached, images, models)
    with held(folder.with_name(f".{folder.name}.lock"), f"the training {folder.name[:12]}"):
        return _found_or_fitted(line, cached, images, folder, publish, processes)


def _found_or_fitted(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    processes: int | None,
) -> Path:
    """Find or fit the model while no other process does."""
    if (folder / "training.json").exists():
        say(f"train: found the model of these {len(images)} images, configuration and seed")
        _republish(folder / "training.json", publish)
        return folder
    count = processes_for(line) if processes is None else processes
    if count == 1:
        fit_here(line, cached, images, folder, publish)
    else:
        fit_together(line, cached, images, folder, publish, processes=count)
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


def _republish(history: Path, publish: OnEpoch) -> None:
    from csflow.flow.training import EpochResult

    for row in json.loads(history.read_text()):
        publish(EpochResult(**row))
