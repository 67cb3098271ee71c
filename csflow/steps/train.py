"""Fit the line's detector to the features of the good images that have the role *fit*."""

from __future__ import annotations

import shutil
from pathlib import Path

from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.services import Services
from csflow.runs.stored_features import load_features

WATCHED = 32
"""Most held-out images whose likelihood is measured while a flow is trained."""


def train(
    services: Services,
    context_path: str | Path,
    manifest_path: str | Path,
    features_path: str | Path,
    *,
    model_out: str | Path,
) -> None:
    """Train, or find the model that was fitted to equal inputs before; resume a training that was killed.

    If ``resources.gpus`` is above 1 and the machine has as many GPUs, one process per GPU trains: see
    :mod:`csflow.runs.torchrun`.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_path: The cache manifest.
        model_out: Folder for ``model.safetensors`` and ``training.json`` (one row per epoch; none
            for kinds of detector without epochs).

    Raises:
        ModelError: If training diverges.
        CacheError: If a stored feature is damaged.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return
    with step(services, "train", context):
        from csflow.runs.find_or_fit import find_or_fit
        from csflow.runs.fitting import images_to_fit

        manifest = load_manifest(context, Path(manifest_path))
        cached = load_features(services, context.run_id, Path(features_path))
        images = images_to_fit(context.line, list(manifest.rows(role="fit").frame["sha256"]))
        held_out = sorted(manifest.rows(role="calibrate").frame["sha256"])[:WATCHED]
        with services.tracker.epoch_log(context.run_id) as publish:
            folder = find_or_fit(context.line, cached, images, services.workspace.models, publish, held_out=held_out)
        services.tracker.set_tags(context.run_id, {"model_key": folder.name})
        shutil.copytree(folder, Path(model_out), dirs_exist_ok=True)
