"""Calibrate the threshold, score the test images, and write the detector and its report."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from csflow import __version__
from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.find_or_fit import checked_copy
from csflow.runs.fitting import MODEL, images_to_fit
from csflow.runs.identity import detector_code
from csflow.runs.services import Services
from csflow.runs.stored_features import load_features
from csflow.system.progress import say

if TYPE_CHECKING:
    from PIL import Image

    from csflow.config import LineConfig
    from csflow.data.manifest import Manifest
    from csflow.detector.detector import Detector
    from csflow.features.cache_manifest import CacheManifest
    from csflow.reporting.normality import FeatureSample
    from csflow.reporting.report import Evaluation


FEATURES_SHOWN = 400
"""Most training images whose feature values are drawn as histograms."""


def evaluate(
    services: Services,
    context_path: str | Path,
    manifest_path: str | Path,
    features_path: str | Path,
    model_path: str | Path,
    *,
    detector_out: str | Path,
    report_out: str | Path,
) -> dict[str, float]:
    """Calibrate on the *calibrate* images and evaluate on the *test* images; no setting is chosen on either.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        features_path: The cache manifest.
        model_path: The model that ``train`` wrote.
        detector_out: Where to write the detector directory.
        report_out: Where to write the report page.

    Returns:
        The run's final metrics by name; empty if nothing changed.

    Raises:
        DataError: If too few images are held out for the promised false-alarm rate.
        CacheError: If a stored feature is damaged.
        ModelError: If the results of the exported graph differ from the detector's.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return {}
    with step(services, "evaluate", context):
        from csflow.reporting.report import write_report
        from csflow.runs.assembly import assemble

        manifest, model = load_manifest(context, Path(manifest_path)), Path(model_path)
        cached = load_features(services, context.run_id, Path(features_path))
        epochs = checked_copy(context.line, cached, _fitted(context, manifest), services.workspace.models, model)
        detector = assemble(context.line, manifest, cached, model / MODEL, _lineage(context, manifest))
        detector.save(Path(detector_out), examples=_examples(context.line, manifest))
        nll, shown = [epoch.nll for epoch in epochs], _features_shown(context, manifest, cached)
        evaluation = judge(detector, manifest, cached, nll=nll, features=shown)
        folder = services.workspace.runs / context.run_id / "report"
        shutil.copyfile(write_report(folder, evaluation), report_out)
        metrics = _metrics(evaluation, _counts(context, manifest))
        services.tracker.log_metrics(context.run_id, metrics)
        services.tracker.log_artifact(context.run_id, folder)
        _say_results(evaluation)
        return metrics


def judge(
    detector: Detector,
    manifest: Manifest,
    cached: CacheManifest,
    *,
    nll: list[float] | None = None,
    features: FeatureSample | None = None,
) -> Evaluation:
    """Evaluate a detector on a line's test images, with features from the store.

    Args:
        detector: The detector; its feature space must be that of ``cached``.
        manifest: The line's manifest.
        cached: Features of at least the test images.
        nll: Training curve to show in the report.
        features: Features of the training images, to show in the report.
    """
    from csflow.reporting.assemble import evaluate_scores

    test = manifest.rows(role="test")
    scores, maps = detector.score_features(cached.open(list(test.frame["sha256"])))
    return evaluate_scores(
        test,
        scores,
        maps,
        detector.calibration,
        nll=nll or [],
        lineage=detector.lineage,
        features=features,
        bit_depth=detector.line.features.bit_depth,
    )


def _features_shown(context: RunContext, manifest: Manifest, cached: CacheManifest) -> FeatureSample | None:
    """Read some features of the fitted images; None for a single image, and for kinds of detector without a flow."""
    from csflow.config import KINDS
    from csflow.reporting.normality import sample_features

    if "flow" not in KINDS[context.line.detector].sections:
        return None
    pyramids = cached.open(_fitted(context, manifest)[:FEATURES_SHOWN])
    return sample_features(pyramids[i] for i in range(len(pyramids))) if len(pyramids) > 1 else None


def _examples(line: LineConfig, manifest: Manifest) -> list[Image.Image]:
    """Read a few images that were not fitted, for which the exported graph must give the detector's results."""
    from csflow.data.images import read_image

    held_out, test = manifest.rows(role="calibrate"), manifest.rows(role="test")
    files = (held_out if len(held_out) else test).files[:3]
    return [read_image(file, line.features.bit_depth) for file in files]


def _lineage(context: RunContext, manifest: Manifest) -> dict[str, object]:
    return {
        "line": context.line.line,
        "data_repo": context.line.data.repo,
        "data_path": context.line.data.path,
        "git_rev": context.git_rev,
        "data_md5": context.data_md5,
        "data_digest": context.data_digest,
        "images": _counts(context, manifest),
        "run_id": context.run_id,
        "content_key": context.content_key,
        "seed": context.line.training.seed,
        "code_version": detector_code(context.line),
        "csflow_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _counts(context: RunContext, manifest: Manifest) -> dict[str, int]:
    """Count the images in each role; for *fit*, only those that were fitted."""
    counts = {role: len(manifest.rows(role=role)) for role in ("calibrate", "gate", "test")}
    return {"fit": len(_fitted(context, manifest)), **counts}


def _fitted(context: RunContext, manifest: Manifest) -> list[str]:
    """Return the SHA-256 of the images that the model was fitted to."""
    return images_to_fit(context.line, list(manifest.rows(role="fit").frame["sha256"]))


def _metrics(evaluation: Evaluation, counts: dict[str, int]) -> dict[str, float]:
    """Return the final metrics of a run by name, the same for every run; missing ones are left out."""
    calibration = evaluation.calibration
    rates = {"false_alarm_rate": evaluation.false_alarms, "defects_found": evaluation.detections}
    values = {
        **{name: found.value for name, found in evaluation.metrics.items()},
        "threshold": calibration.threshold,
        **{f"images_{role}": float(count) for role, count in counts.items()},
        **{name: rate.events / rate.trials if rate and rate.trials else None for name, rate in rates.items()},
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def _say_results(evaluation: Evaluation) -> None:
    if evaluation.detections and evaluation.detections.trials:
        few = ": few, see the report" if evaluation.finds_too_few else ""
        say(f"evaluate: defects found at the threshold: {evaluation.detections.text}{few}")
    say(f"evaluate: image AUROC {_text(evaluation.image_auroc)}, pixel AUROC {_text(evaluation.pixel_auroc)}")
    say(f"evaluate: {evaluation.calibration.statement}")
