"""Judge one image's score and map by a calibration, in the same way for torch and for the inference engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from csflow.detector.boxes import Box, boxes_in_image
from csflow.detector.calibration import Calibration

Float32Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The judgement of a detector on one image.

    Attributes:
        score: Anomaly score, higher is more anomalous.
        p_value: Share of good parts that would score at least this high; ``None`` without calibration.
        decision: ``"good"`` or ``"defective"``; ``None`` without calibration.
        threshold: The score above which a part is defective; ``None`` without calibration.
        anomaly_map: ``(h, w)`` float32 at the resolution of the finest latent.
        image_size: ``(width, height)`` of the image in pixels.
        boxes: Regions above the region threshold in image pixels, most anomalous first.
    """

    score: float
    p_value: float | None
    decision: str | None
    threshold: float | None
    anomaly_map: Float32Array
    image_size: tuple[int, int]
    boxes: list[Box]


def judged(score: float, map2d: Float32Array, image_size: tuple[int, int], calibration: Calibration) -> Prediction:
    """Judge one image's score and map by a calibration.

    Args:
        score: Anomaly score.
        map2d: Anomaly map ``(h, w)`` at the resolution of the finest latent.
        image_size: ``(width, height)`` of the image in pixels.
        calibration: Calibration of the detector.

    Raises:
        ModelError: If the score is not a number.
    """
    score, regions = float(score), calibration.region_threshold
    return Prediction(
        score=score,
        p_value=calibration.p_value(score),
        decision=calibration.decide(score),
        threshold=calibration.threshold,
        anomaly_map=map2d,
        image_size=image_size,
        boxes=[] if regions is None else boxes_in_image(map2d, regions, image_size),
    )
