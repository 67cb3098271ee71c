"""Fit the flow to the features of the good images that have the role *fit*."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from csflow.files import new_directory, sha256_json, write_json
from csflow.progress import say
from csflow.steps.context import TRAINING_CODE, RunContext, code_version, load_manifest, step
from csflow.workspace import Workspace

if TYPE_CHECKING:
    from csflow.cache import CacheManifest
    from csflow.training import EpochResult

OnEpoch: TypeAlias = "Callable[[EpochResult], None]"


def train(
    context_path: str | Path, manifest_path: str | Path, features_path: str | Path, *, model_out: str | Path
) -> None:
    """Train, or find the model that equal inputs made before; a killed training resumes.

    Args:
        context_path: What ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_path: The cache manifest.
        model_out: Folder for ``model.safetensors`` and ``training.json`` (one row an epoch).

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step("train", context):
        from csflow.adapters import tracking
        from csflow.cache import CacheManifest

        workspace = Workspace.from_environment()
        manifest = load_manifest(context, Path(manifest_path)).rows(role="fit")
        cached = CacheManifest.load(Path(features_path))
        images = list(manifest.frame["sha256"])
        key = sha256_json([cached.space, images, context.line.method_digest(), code_version(*TRAINING_CODE)])
        folder = workspace.models / key
        with tracking.epoch_log(workspace, context.run_id) as publish:
            if (folder / "training.json").exists():
                say(f"train: found the model of these {len(images)} images, configuration and seed")
                _republish(folder / "training.json", publish)
            else:
                _fit(context, cached, images, folder, publish)
        shutil.copytree(folder, Path(model_out), dirs_exist_ok=True)


def _republish(history: Path, publish: OnEpoch) -> None:
    from csflow.training import EpochResult

    for row in json.loads(history.read_text()):
        publish(EpochResult(**row))


def _fit(context: RunContext, cached: CacheManifest, images: list[str], folder: Path, publish: OnEpoch) -> None:
    from csflow.detector import save_flow
    from csflow.training import fit

    line, work = context.line, folder.with_suffix(".work")
    history = _History(work / "history.json", publish)
    say(f"train: {len(images)} images, {line.training.epochs} epochs, hidden width {line.flow.hidden}")
    flow = fit(
        cached.open(images),
        line.flow,
        line.training,
        channels=cached.channels,
        scales=line.features.scales,
        directory=work,
        on_epoch=history.add,
    )
    history.finish(line.training.epochs)
    with new_directory(folder) as target:
        save_flow(flow, target / "model.safetensors")  # rounded, so that it is calibrated as it will be stored
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
        from csflow.training import EpochResult

        rows = json.loads(self.path.read_text()) if self.path.exists() else []
        self.rows = [row for row in rows if row["epoch"] < before]
        for row in self.rows:
            self.publish(EpochResult(**row))
