"""What clients read: a prediction as plain JSON values (V1) or as named columns (V2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict

from csflow.adapters.serving.requests import Item
from csflow.detector.calibration import Calibration
from csflow.detector.heatmap import heatmap_png
from csflow.detector.prediction import Prediction

Answer = dict[str, object]
Column = tuple[str, str, list[float | str]]

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


def answer(prediction: Prediction, item: Item, calibration: Calibration, version: str) -> Answer:
    """Describe one prediction.

    Returns:
        ``score``, ``p_value``, ``decision``, ``threshold`` (``None`` without calibration), ``version``, and on
        request ``heatmap`` (PNG of the image's size, base64) and ``boxes`` (pixels of the image; ``None`` without
        calibration).
    """
    described: Answer = {
        "score": prediction.score,
        "p_value": prediction.p_value,
        "decision": prediction.decision,
        "threshold": prediction.threshold,
        "version": version,
    }
    if item.heatmap:
        png = heatmap_png(prediction.anomaly_map, calibration.map_range, prediction.image_size)
        described["heatmap"] = base64.b64encode(png).decode()
    if item.boxes:
        known = calibration.region_threshold is not None
        described["boxes"] = [asdict(box) for box in prediction.boxes] if known else None
    return described


def columns(answers: Sequence[Answer]) -> list[Column]:
    """Turn answers of one request into V2 outputs ``(name, datatype, values)``.

    Values a detector without calibration does not have are left out, because V2 knows no null.
    """
    present = [name for name in answers[0] if answers[0][name] is not None]
    return [(name, DATATYPES[name], [_plain(name, each[name]) for each in answers]) for name in present]


def _plain(name: str, value: object) -> float | str:
    if name == "boxes":
        return json.dumps(value)
    assert isinstance(value, float | str)
    return value
