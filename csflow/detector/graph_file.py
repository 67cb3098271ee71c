"""Write a detector's graphs into its directory, and refuse those that disagree with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from csflow.detector.calibration import Calibration
from csflow.detector.directory import (
    BACKBONE,
    BACKBONE_GRAPH,
    DETECTOR_FORMAT,
    MODEL,
    MODEL_GRAPH,
    Description,
    check_graphs,
    compare_digest,
    digest_of,
    digests_beside_last_graph,
)
from csflow.detector.graph import leave_weights_in, model_graph
from csflow.detector.model import Model
from csflow.detector.prediction import Prediction
from csflow.errors import ModelError
from csflow.features.backbone import Backbone
from csflow.features.trunk_graph import sealed_bytes, trunk_graph_without_weights
from csflow.system.files import write_atomic

NEGLIGIBLE = 0.1
"""Share of the largest calibration score: smaller scores are compared as if they were this large."""

GRAPH_AGREEMENT = 1e-3
"""Largest relative difference between graph and torch that is allowed, of a score or (Euclidean norm) of a map."""


def write_graphs(directory: Path, about: Description, backbone: Backbone, model: Model) -> None:
    """Write the graphs into a detector directory that has all other files; their weights stay in those.

    Args:
        directory: The detector directory.
        about: Content of its JSON files.
        backbone: The trunk.
        model: The fitted model.

    Raises:
        ModelError: If the detector has an operation that ONNX does not know.
    """
    features = about.line.features
    trunk = trunk_graph_without_weights(backbone, features)
    leave_weights_in(trunk, {"backbone": directory / BACKBONE})
    write_atomic(directory / BACKBONE_GRAPH, sealed_bytes(trunk))
    graph = model_graph(model, backbone.shapes(features), about.calibration.threshold)
    leave_weights_in(graph, {"model": directory / MODEL})
    _describe(graph, about, digest_of(digests_beside_last_graph(directory, about.graphs)))
    write_atomic(directory / MODEL_GRAPH, sealed_bytes(graph))


def check_directory(directory: Path) -> None:
    """Compare all files of a detector directory with the checksums in its graphs.

    Directories of format 1 have no graph, and thus no checksums.

    Raises:
        ModelError: If a file is missing or damaged.
    """
    graphs = Description.read(directory).graphs
    if not graphs:
        return
    check_graphs(directory, graphs)
    last = directory / graphs[-1]
    try:
        graph = onnx.load(last, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise ModelError(f"{last} is damaged: {error}. Download or publish the detector again.") from error
    noted = next((entry.value for entry in graph.metadata_props if entry.key == "digest"), "")
    compare_digest(directory, noted, digest_of(digests_beside_last_graph(directory, graphs)))


def check_agreement(expected: Sequence[Prediction], found: Sequence[Prediction], calibration: Calibration) -> None:
    """Refuse a graph whose predictions differ from those of torch.

    Args:
        expected: Predictions of torch.
        found: Predictions of the graph on the same images.
        calibration: Its scores tell how large a difference matters: a score near zero need not agree in every digit.

    Raises:
        ModelError: If a score or map differs too much; names the largest difference.
    """
    pairs = list(zip(expected, found, strict=True))
    usual = NEGLIGIBLE * max((abs(score) for score in calibration.scores), default=0.0)
    scores = np.max([abs(a.score - b.score) / max(abs(a.score), usual, 1e-30) for a, b in pairs])
    maps = np.max([_distance(a, b) for a, b in pairs])
    if not (scores <= GRAPH_AGREEMENT and maps <= GRAPH_AGREEMENT):  # also if one is not a number
        raise ModelError(
            f"The exported graph differs from the detector by {scores:.2g} of a score and {maps:.2g} of a map "
            f"(relative, at most {GRAPH_AGREEMENT:g} is allowed), so nothing was written. Train again."
        )


def drawn_examples() -> list[Image.Image]:
    """Draw pictures to compare on when there is no image of the line: a smooth one and a busy one."""
    busy = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return [Image.linear_gradient("L").convert("RGB"), Image.fromarray(busy)]


def _distance(expected: Prediction, found: Prediction) -> float:
    difference = np.linalg.norm(expected.anomaly_map - found.anomaly_map)
    return float(difference / np.linalg.norm(expected.anomaly_map))


def _describe(graph: onnx.ModelProto, about: Description, digest: str) -> None:
    """Describe the detector in the graph, for a device that has no other file."""
    calibration = about.calibration
    properties = {
        "csflow_format": DETECTOR_FORMAT,
        "line": about.line.line,
        "threshold": calibration.threshold,
        "region_threshold": calibration.region_threshold,
        "promise": calibration.statement,
        "digest": digest,
    }
    for key, value in properties.items():
        if value is not None:
            graph.metadata_props.add(key=key, value=str(value))
