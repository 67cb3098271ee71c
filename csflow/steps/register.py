"""Register the detector as a version of the line's model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csflow.adapters.mlflow.versions import model_name
from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.services import Services
from csflow.runs.stored_features import DIGEST, MODEL_KEY, SPACE
from csflow.system.files import sha256_tree
from csflow.system.progress import say

_DIGESTS = ("content_key", "git_rev", "data_md5", "data_digest", "detector_digest", SPACE, DIGEST, MODEL_KEY)
"""Tags of a version that identify what it was made from; the run has them as ``digests.json``."""


def register(services: Services, context_path: str | Path, manifest_path: str | Path, detector_path: str | Path) -> int:
    """Register a detector once per content key; a repeated call finds the same version.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest; its first image becomes the model's input example.
        detector_path: The detector directory.

    Returns:
        The version; 0 if nothing changed, so that nothing was registered.

    Raises:
        ModelError: If a file of the detector directory is damaged.
        RegistryError: If the registry cannot be reached.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return 0
    with step(services, "register", context):
        from csflow.detector.graph_file import check_directory
        from csflow.release.description import describe_line, describe_version, read_facts

        check_directory(Path(detector_path))
        example = load_manifest(context, Path(manifest_path)).files[0]
        facts = read_facts(services, context.run_id)
        tags = _version_tags(services, context, Path(detector_path), facts)
        version = services.registry.register(
            Path(detector_path),
            line=context.line.line,
            run_id=context.run_id,
            tags=tags,
            example=example.read_bytes(),
        )
        services.tracker.log_json(context.run_id, {name: tags[name] for name in _DIGESTS}, "digests.json")
        describe_line(services, context)
        describe_version(services, context, version, facts)
        say(f"register: {model_name(context.line.line)} version {version}")
        return version


def _version_tags(
    services: Services, context: RunContext, detector: Path, facts: Mapping[str, Any]
) -> dict[str, object]:
    from csflow.detector.calibration import Calibration
    from csflow.reporting.model_card import defects_found

    run = services.tracker.read_run(context.run_id)
    metrics = run.metrics
    line = context.line
    low, high = facts.get("image_auroc_interval") or (None, None)
    found = defects_found(facts)
    return {
        "content_key": context.content_key,
        "data_md5": context.data_md5,
        "data_digest": context.data_digest,
        "git_rev": context.git_rev,
        "detector_digest": sha256_tree(detector),
        "image_auroc": metrics.get("image_auroc"),
        "image_auroc_low": low,
        "image_auroc_high": high,
        "defects_found": found.text if found and found.trials else None,
        "pixel_auroc": metrics.get("pixel_auroc"),
        "threshold": metrics.get("threshold"),
        "promise": Calibration.from_json(json.loads((detector / "calibration.json").read_text())).statement,
        "alpha": None if line.calibration == "none" else line.calibration.alpha,
        "backbone": line.features.backbone,
        "seed": line.training.seed,
        # `csflow prune` keeps these for this version: its features and its model in the workspace.
        **{tag: run.tags.get(tag) for tag in (SPACE, DIGEST, MODEL_KEY)},
    }
