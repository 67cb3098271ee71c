"""Fit the line's detector to the features of the good images that have the role *fit*."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from csflow.errors import DataError
from csflow.runs.context import FITTING_CODE, FLOW_CODE, RunContext, code_version, load_manifest, step
from csflow.runs.services import Services
from csflow.system.files import new_directory, sha256_json, write_json
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.config import LineConfig
    from csflow.features.store import CacheManifest
    from csflow.flow.distributed import Group
    from csflow.flow.training import EpochResult

OnEpoch: TypeAlias = "Callable[[EpochResult], None]"


def train(
    services: Services,
    context_path: str | Path,
    manifest_path: str | Path,
    features_path: str | Path,
    *,
    model_out: str | Path,
) -> None:
    """Train, or find the model that equal inputs made before; a killed training resumes.

    With ``resources.gpus`` above 1 and as many GPUs at hand, a process on each of them trains: see
    :mod:`csflow.runs.torchrun`.

    Args:
        services: The outside systems.
        context_path: What ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_path: The cache manifest.
        model_out: Folder for ``model.safetensors`` and ``training.json`` (one row an epoch; none for kinds without).

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step(services, "train", context):
        from csflow.features.store import CacheManifest

        manifest = load_manifest(context, Path(manifest_path)).rows(role="fit")
        cached = CacheManifest.load(Path(features_path))
        images = images_to_fit(context.line, list(manifest.frame["sha256"]))
        with services.tracker.epoch_log(context.run_id) as publish:
            folder = find_or_fit(context.line, cached, images, services.workspace.models, publish)
        services.tracker.set_tags(context.run_id, {"model_key": folder.name})
        shutil.copytree(folder, Path(model_out), dirs_exist_ok=True)


def find_or_fit(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    models: Path,
    publish: OnEpoch = lambda result: None,
    *,
    processes: int | None = None,
) -> Path:
    """The model that equal inputs made before, or a new one; a killed training resumes.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        models: Folder of all models, each under the digest of what it was made from.
        publish: Told every epoch, those of a model found again too.
        processes: That train together, with the same result up to rounding; as many as :func:`processes_for` says
            unless given.

    Returns:
        Folder with ``model.safetensors`` and ``training.json``.

    Raises:
        DataError: If there are too few images.
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    folder = model_folder(line, cached, images, models)
    if (folder / "training.json").exists():
        say(f"train: found the model of these {len(images)} images, configuration and seed")
        _republish(folder / "training.json", publish)
        return folder
    count = processes_for(line) if processes is None else processes
    if count == 1:
        fit_here(line, cached, images, folder, publish)
    else:
        from csflow.runs.torchrun import fit_together

        fit_together(line, cached, images, folder, publish, processes=count)
    return folder


def model_folder(line: LineConfig, cached: CacheManifest, images: list[str], models: Path) -> Path:
    """Where a model lies: below the digest of all that decides what it becomes. On how many GPUs does not."""
    code = FLOW_CODE if line.detector == "csflow" else (*FLOW_CODE, *FITTING_CODE)
    return models / sha256_json([cached.space, images, line.training_digest(), code_version(*code)])


def processes_for(line: LineConfig) -> int:
    """How many processes train a line on this machine: one a GPU it asks for, if all of them are here."""
    wanted = line.resources.gpus
    if wanted < 2 or line.training.device not in ("auto", "cuda"):
        return 1
    import torch

    from csflow.config_kinds import KINDS

    here = torch.cuda.device_count()
    if not KINDS[line.detector].epochs or here < wanted:
        say(f"train: in one process, though resources.gpus is {wanted}: {line.detector}, {here} CUDA devices here")
        return 1
    return min(wanted, line.training.batch_size)


def images_to_fit(line: LineConfig, candidates: list[str]) -> list[str]:
    """All candidates, or as many as ``roles.shots`` says, drawn with the seed of the training.

    Raises:
        DataError: If there are fewer.
    """
    shots = line.roles.shots
    if shots is None:
        return candidates
    if shots > len(candidates):
        raise DataError(
            f"roles.shots asks for {shots} images to fit, but there are {len(candidates)}. Add images or lower it."
        )
    drawn = np.random.default_rng(line.training.seed).permutation(len(candidates))[:shots]
    return [candidates[place] for place in sorted(drawn)]


def _republish(history: Path, publish: OnEpoch) -> None:
    from csflow.flow.training import EpochResult

    for row in json.loads(history.read_text()):
        publish(EpochResult(**row))


def fit_here(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    *,
    group: Group | None = None,
) -> None:
    """Fit in this process, alone or as one of a group, of which the first writes and tells.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        folder: Becomes the folder of the model; the checkpoint lies beside it.
        publish: Told every epoch.
        group: The processes that train together; by default this one.

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
        SystemExit: After a signal, with a checkpoint.
    """
    from csflow.config_kinds import KINDS
    from csflow.detector.fitting import fit_model
    from csflow.detector.model import save_model
    from csflow.flow.distributed import ALONE

    group = group or ALONE
    work = folder.with_suffix(".work")
    history = _History(work / "history.json", publish)
    trained = KINDS[line.detector].epochs
    if group.first:
        effort = f", {line.training.epochs} epochs, hidden width {line.flow.hidden}" if trained else ""
        together = f", {group.size} processes" if group.size > 1 else ""
        say(f"train: {line.detector} on {len(images)} images{effort}{together}")
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
    """Epochs so far, on disk, so that a resumed training still shows its whole curve."""

    def __init__(self, path: Path, publish: OnEpoch) -> None:
        self.path = path
        self.publish = publish
        self.rows: list[dict[str, Any]] = []

    def add(self, result: EpochResult) -> None:
        if not self.rows:
            self._take_up(before=result.epoch)
        self.rows.append(asdict(result))
        write_json(self.path, self.rows)
        self.publish(result)
        say(
            f"train: epoch {result.epoch}/{result.epochs}  nll {result.nll:+.4f} per dimension  "
            f"gradient {result.grad_norm:.2f}  {result.seconds:.1f} s"
        )

    def finish(self, epochs: int) -> None:
        """Take up the epochs of a run that was killed after its last one, of which training tells nothing again."""
        if not self.rows:
            self._take_up(before=epochs + 1)

    def _take_up(self, *, before: int) -> None:
        """Epochs of the killed run up to its checkpoint; later ones are trained again."""
        from csflow.flow.training import EpochResult

        rows = json.loads(self.path.read_text()) if self.path.exists() else []
        self.rows = [row for row in rows if row["epoch"] < before]
        for row in self.rows:
            self.publish(EpochResult(**row))
