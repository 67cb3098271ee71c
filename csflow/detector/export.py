"""Export a detector as one self-contained ONNX file for a device that has only an inference engine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from csflow.detector.detector import Detector
from csflow.detector.directory import BACKBONE_GRAPH, MODEL_GRAPH
from csflow.detector.graph import joined, with_weights
from csflow.detector.graph_file import check_agreement, drawn_examples
from csflow.detector.prediction import Prediction, judged
from csflow.detector.sizing import put_sizing_in
from csflow.features.trunk_graph import sealed_bytes
from csflow.system.onnx_session import open_session


def export_file(detector: Detector, output: Path, examples: Sequence[Image.Image] = ()) -> None:
    """Write a detector as one self-contained ONNX file that takes images of any size.

    Args:
        detector: The detector.
        output: The file to write; replaced if it exists.
        examples: Images of the line on which the file must agree with the detector; drawn ones if there are none.

    Raises:
        ModelError: If the file disagrees with the detector; nothing is written then.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        directory = Path(folder) / "detector"
        detector.save(directory, examples=examples)
        model = joined(*(with_weights(directory / name) for name in (BACKBONE_GRAPH, MODEL_GRAPH)))
        put_sizing_in(model, detector.line.features)
        single = Path(folder) / "single.onnx"
        single.write_bytes(sealed_bytes(model))
        images = list(examples) or drawn_examples()
        check_agreement(detector.predict(images), _predictions(single, detector, images), detector.calibration)
        single.replace(output)


def _predictions(file: Path, detector: Detector, images: Sequence[Image.Image]) -> list[Prediction]:
    session = open_session(file, threads=0)
    answers = [session.run(["score", "map"], {"images": np.asarray(image)[None]}) for image in images]
    return [
        judged(scores[0], maps[0], image.size, detector.calibration)
        for (scores, maps), image in zip(answers, images, strict=True)
    ]
