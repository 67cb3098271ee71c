"""Measure one row and seed, once: features from the store, a model by its content, metrics of the test images."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.detector.model import score_stored
from csflow.detector.model_file import load_model, round_to_stored
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CacheManifest
from csflow.features.store import FeatureStore
from csflow.metrics import by_defect
from csflow.metrics.evaluation import measured_with_error
from csflow.runs.find_or_fit import find_or_fit
from csflow.runs.fitting import images_to_fit
from csflow.runs.identity import detector_code
from csflow.system.code_identity import code_version
from csflow.system.files import sha256_json, write_json
from csflow.system.progress import say
from csflow.system.workspace import Workspace

FORMAT = 2
"""Format of the files; format 1 had no bound of the binning error."""


@dataclass(frozen=True)
class Material:
    """The images of a row, and their features.

    Attributes:
        fit: Good images to fit, before ``roles.shots`` draws from them.
        test: Images to judge.
        cached: Features of both.
    """

    fit: Manifest
    test: Manifest
    cached: CacheManifest


def gather(line: LineConfig, manifest: Manifest, workspace: Workspace) -> Material:
    """Extract those of a line's features that the store lacks."""
    backbone = load_backbone(line.features)
    cached = FeatureStore(workspace.features).extract(manifest, line.features, backbone)
    return Material(manifest.rows(role="fit"), manifest.rows(role="test"), cached)


def measure(line: LineConfig, material: Material, workspace: Workspace, results: Path) -> dict[str, Any]:
    """Measure the metrics of one configuration, or read its file if it was measured before.

    Args:
        line: The configuration, seed included.
        material: From :func:`gather`.
        workspace: Folder of the store and the models.
        results: Folder of the files.

    Returns:
        ``metrics`` (value, low, high of each), ``binning_error`` (bound of each pixel metric), ``by_defect``
        (value, low, high of the image AUROC of each type), ``scores`` of the test images in the order of the manifest,
        number of ``images`` fitted and ``seconds`` of fitting (or of finding an earlier model).
    """
    images = images_to_fit(line, list(material.fit.frame["sha256"]))
    judged = list(material.test.frame["sha256"])
    code = [detector_code(line), code_version("csflow.metrics.evaluation")]
    key = sha256_json([material.cached.space, images, material.test.digest, line.method_digest(), code, FORMAT])
    file = results / f"{key}.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    began = time.monotonic()
    folder = find_or_fit(line, material.cached, images, workspace.models)
    fitted = time.monotonic() - began
    model = load_model(folder / "model.safetensors", line, material.cached.shapes)
    round_to_stored(model)
    scores, maps = score_stored(model, material.cached.open(judged))
    measured = {**_metrics(material.test, scores, maps), "scores": scores.tolist(), "images": len(images)}
    measured["seconds"] = round(fitted, 1)
    write_json(file, measured)
    return measured


def _metrics(test: Manifest, scores: np.ndarray[Any, Any], maps: np.ndarray[Any, Any]) -> dict[str, Any]:
    labels = (test.frame["label"] == "defective").to_numpy()
    metrics, error = measured_with_error(test, scores, maps)
    types = by_defect(scores, labels, list(test.frame["defect"]))
    say("  " + "  ".join(f"{name} {100 * value.value:.2f}" for name, value in metrics.items()))
    return {
        "metrics": {name: list(value) for name, value in metrics.items()},
        "binning_error": dict(error),
        "by_defect": {kind: list(values["image_auroc"]) for kind, values in types.items()},
    }
