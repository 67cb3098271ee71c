"""A detector with known answers: its scores by an eager trunk and the plain flow in float32.

The correct answers come from the weights as trained, so a score's error includes that of rounding them in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from csflow.config import CalibrationConfig, DataConfig, FlowConfig, LineConfig
from csflow.detector.calibration import Calibration, calibrate
from csflow.detector.detector import Detector
from csflow.detector.kinds.cross_scale_flow import FlowModel
from csflow.detector.model_file import round_to_stored
from csflow.features.backbone import Backbone
from csflow.flow.cross_scale import CrossScaleFlow
from sidebyside.bench import Bench
from sidebyside.peers.eager import Trunk
from sidebyside.plain import plain_flow, plain_scores

COPIES = 40
"""Equal calibration scores, so that their order statistic is the wanted threshold."""


def make_detector(bench: Bench, backbone: Backbone, line: LineConfig) -> None:
    """Save the detector and its correct answers (``reference.json``)."""
    scores, map_maximum = _reference(bench)
    ordered = np.sort(scores)
    middle = ordered[len(ordered) // 4 : 3 * len(ordered) // 4 + 1]
    gap = int(np.argmax(np.diff(middle)))
    # In the widest gap of the middle half, so that no decision depends on rounding.
    threshold = float(middle[gap : gap + 2].mean())
    calibration: Calibration = calibrate(
        np.full(COPIES, threshold), np.full((COPIES, 1, 1), map_maximum), CalibrationConfig()
    )
    flow = CrossScaleFlow(line.flow, channels=backbone.channels, scales=line.features.scales)
    flow.load_state_dict(bench.tensors("flow"))
    scale = bench.tensors("scale")
    flow.set_standardization(scale["mean"], scale["std"])
    round_to_stored(flow)
    Detector(line, backbone, FlowModel(flow, line.scoring), calibration, {"benchmark": True}).save(bench.detector)
    decisions = ["defective" if score > threshold else "good" for score in scores]
    bench.save("reference", {"scores": scores.tolist(), "decisions": decisions})


def line_of(bench: Bench, features: Any) -> LineConfig:
    """Return the configuration of the detector."""
    shape = FlowConfig(hidden=bench.settings.width)
    return LineConfig(line="speed", data=DataConfig(path="images"), features=features, flow=shape)


@torch.inference_mode()
def _reference(bench: Bench) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Return the scores of all images, and the median of their maps' maxima."""
    trunk, state, scale = Trunk(bench), bench.tensors("flow"), bench.tensors("scale")
    mean, std = scale["mean"][:, :, None, None], scale["std"][:, :, None, None]
    scores, maxima = [], []
    for path in bench.images:
        features = trunk(trunk.decode([path.read_bytes()]))
        latents, _ = plain_flow(state, [(x - m) / s for x, m, s in zip(features, mean, std, strict=True)])
        scores.append(float(plain_scores(latents)))
        maxima.append(float(latents[0].square().sum(dim=1).max()))
    return np.array(scores, dtype=np.float64), float(np.median(maxima))
