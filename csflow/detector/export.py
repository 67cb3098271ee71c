"""A detector as ONNX: beside its weights for the engine, or one file for an edge device; never one that disagrees."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from PIL import Image

from csflow.detector.calibration import Calibration
from csflow.detector.directory import BACKBONE, FORMAT, GRAPH, MODEL, digest_beside_graph
from csflow.detector.graph import detector_graph, leave_weights_in, put_weights_in
from csflow.detector.prediction import Prediction, judged
from csflow.detector.sizing import put_sizing_in
from csflow.errors import ModelError
from csflow.system.files import write_atomic
from csflow.system.onnx_session import open_session

if TYPE_CHECKING:
    from csflow.detector.detector import Detector

NEGLIGIBLE = 0.1
"""Part of the largest calibration score below which a score counts as no smaller."""

AGREEMENT = 1e-3
"""Largest relative difference between a graph and torch, of a score or (in the Euclidean norm) of a map."""


def write_graph(detector: Detector, directory: Path) -> None:
    """Write the graph into a detector directory whose other files are there; its weights stay in those.

    Raises:
        ModelError: If the detector has an operation ONNX does not know.
    """
    model = detector_graph(detector.backbone, detector.model, detector.line.features, detector.calibration.threshold)
    leave_weights_in(model, {"model": directory / MODEL, "backbone": directory / BACKBONE})
    _describe(model, detector, digest_beside_graph(directory))
    write_atomic(directory / GRAPH, model.SerializeToString())


def export_file(detector: Detector, output: Path, examples: Sequence[Image.Image] = ()) -> None:
    """Write a detector as one self-contained ONNX file that takes images of any size.

    Args:
        detector: What to write.
        output: The file; replaced if it exists.
        examples: Images of the line on which the file must agree with the detector; drawn ones without.

    Raises:
        ModelError: If the file says something else than the detector; nothing is written then.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        directory = Path(folder) / "detector"
        detector.save(directory, examples=examples)
        model = onnx.load(directory / GRAPH, load_external_data=False)
        put_weights_in(model, directory)
        put_sizing_in(model, detector.line.features)
        single = Path(folder) / "single.onnx"
        single.write_bytes(model.SerializeToString())
        images = list(examples) or drawn_examples()
        check_agreement(detector.predict(images), _predictions(single, detector, images), detector.calibration)
        single.replace(output)


def check_agreement(expected: Sequence[Prediction], found: Sequence[Prediction], calibration: Calibration) -> None:
    """Refuse a graph that does not say what torch says.

    Args:
        expected: What torch says.
        found: What the graph says of the same images.
        calibration: Its scores say which differences matter: a score near zero need not agree in all its digits.

    Raises:
        ModelError: Naming the largest difference.
    """
    pairs = list(zip(expected, found, strict=True))
    usual = NEGLIGIBLE * max((abs(score) for score in calibration.scores), default=0.0)
    scores = np.max([abs(a.score - b.score) / max(abs(a.score), usual, 1e-30) for a, b in pairs])
    maps = np.max([_distance(a, b) for a, b in pairs])
    if not (scores <= AGREEMENT and maps <= AGREEMENT):  # also if one is not a number
        raise ModelError(
            f"The exported graph differs from the detector by {scores:.2g} of a score and {maps:.2g} of a map "
            f"(relative, at most {AGREEMENT:g} is allowed), so nothing was written. Train again."
        )


def drawn_examples() -> list[Image.Image]:
    """Pictures to compare on when no image of the line is at hand: a smooth one and a busy one."""
    busy = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return [Image.linear_gradient("L").convert("RGB"), Image.fromarray(busy)]


def _predictions(file: Path, detector: Detector, images: Sequence[Image.Image]) -> list[Prediction]:
    session = open_session(file, threads=0)
    answers = [session.run(["score", "map"], {"images": np.asarray(image)[None]}) for image in images]
    return [
        judged(scores[0], maps[0], image.size, detector.calibration)
        for (scores, maps), image in zip(answers, images, strict=True)
    ]


def _distance(expected: Prediction, found: Prediction) -> float:
    difference = np.linalg.norm(expected.anomaly_map - found.anomaly_map)
    return float(difference / np.linalg.norm(expected.anomaly_map))


def _describe(model: onnx.ModelProto, detector: Detector, digest: str) -> None:
    """Say in the graph what it is, for a device that has nothing else."""
    calibration = detector.calibration
    about = {
        "csflow_format": FORMAT,
        "line": detector.line.line,
        "threshold": calibration.threshold,
        "region_threshold": calibration.region_threshold,
        "promise": calibration.statement,
        "digest": digest,
    }
    for key, value in about.items():
        if value is not None:
            model.metadata_props.add(key=key, value=str(value))
