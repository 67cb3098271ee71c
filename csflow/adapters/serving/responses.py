"""Describe predictions to clients: as JSON values (V1) or as output tensors (V2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict

from csflow.adapters.serving.requests import RequestedImage
from csflow.detector.calibration import Calibration
from csflow.detector.heatmap import heatmap_png
from csflow.detector.prediction import Prediction

PredictionValues = dict[str, object]
"""A prediction in JSON values."""

OutputTensor = tuple[str, str, list[float | str]]
"""Name, datatype and values of a V2 output, one value an image."""

DATATYPES = {
    "score": "FP64",
    "p_value": "FP64",
    "decision": "BYTES",
    "threshold": "FP64",
    "version": "BYTES",
    "heatmap": "BYTES",
    "boxes": "BYTES",
}
"""V2 outputs: ``heatmap`` is a PNG in base64, ``boxes`` a JSON list; both only on request."""


def describe_prediction(
    prediction: Prediction, image: RequestedImage, calibration: Calibration, version: str
) -> PredictionValues:
    """Describe one prediction.

    Args:
        prediction: The prediction.
        image: The image it is about, and what the client asked for.
        calibration: Of the detector; fixes the colours of the heat-map.
        version: Version of the detector.

    Returns:
        ``score``, ``p_value``, ``decision``, ``threshold`` (``None`` without calibration), ``version``, and on
        request ``heatmap`` (PNG of the image's size, base64) and ``boxes`` (pixels of the image; ``None`` without
        calibration).
    """
    described: PredictionValues = {
        "score": prediction.score,
        "p_value": prediction.p_value,
        "decision": prediction.decision,
        "threshold": prediction.threshold,
        "version": version,
    }
    if image.heatmap:
        png = heatmap_png(prediction.anomaly_map, calibration.scale, prediction.image_size)
        described["heatmap"] = base64.b64encode(png).decode()
    if image.boxes:
        known = calibration.region_threshold is not None
        described["boxes"] = [asdict(box) for box in prediction.boxes] if known else None
    return described


def output_tensors(described: Sequence[PredictionValues]) -> list[OutputTensor]:
    """Turn the described predictions of one request into V2 outputs.

    Values that a detector without calibration does not have are left out, because V2 knows no null.
    """
    present = [name for name in described[0] if described[0][name] is not None]
    return [(name, DATATYPES[name], [_plain(name, each[name]) for each in described]) for name in present]


def _plain(name: str, value: object) -> float | str:
    if name == "boxes":
        return json.dumps(value)
    assert isinstance(value, float | str)
    return value
