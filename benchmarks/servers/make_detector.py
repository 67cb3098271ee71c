"""Write a detector directory with the code of the checkout on ``PYTHONPATH``; started by ``materials.py``.

python -m servers.make_detector '{"directory": …, "weights": …, "size": …, "width": …, "blocks": …, "seed": …}'

The weights are random: what a request costs does not depend on their values. The first checkout saves them in the file
``weights`` and the next ones read them from there, so that all servers compute the same.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {
    "Detector": ("csflow.detector", "csflow.detector.detector"),
    "calibrate": ("csflow.calibration", "csflow.detector.calibration"),
    "FlowModel": ("csflow.model", "csflow.detector.kinds.cross_scale_flow"),
    "load_backbone": ("csflow.backbone", "csflow.features.backbone"),
    "CrossScaleFlow": ("csflow.flow", "csflow.flow.cross_scale"),
}
"""Where the names are: in version 0.4, and in this checkout.

In this order, because an editable installation of this checkout supplies modules that the older one does not have.
"""

GAMMA = 0.3
"""Of all couplings; a fresh flow has 0, with which its weights would not count."""


def main(given: dict[str, Any]) -> None:
    """Write the directory and, if they are asked for, one ONNX file and the correct scores."""
    import torch

    from csflow.config import CalibrationConfig, DataConfig, FeatureConfig, FlowConfig, LineConfig

    torch.manual_seed(given["seed"])
    features = FeatureConfig(image_size=given["size"])
    shape = FlowConfig(hidden=given["width"], blocks=given["blocks"])
    line = LineConfig(line="line", data=DataConfig(path="data"), features=features, flow=shape)
    backbone = _named("load_backbone")(features)
    flow = _named("CrossScaleFlow")(shape, channels=backbone.channels, scales=features.scales)
    if (weights := Path(given["weights"])).exists():
        flow.load_state_dict(torch.load(weights, weights_only=True))
    else:
        with torch.no_grad():
            for name, parameter in flow.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(GAMMA)
        torch.save(flow.state_dict(), weights)
    draw = np.random.default_rng(given["seed"])
    calibration = _named("calibrate")(
        draw.uniform(0.2, 2.0, 40), draw.uniform(0.0, 2000.0, (40, 12, 12)), CalibrationConfig()
    )
    detector = _named("Detector")(line, backbone, _named("FlowModel")(flow, line.scoring), calibration, {})
    detector.save(Path(given["directory"]))
    if "export" in given:
        from csflow.detector.export import export_file

        export_file(detector, Path(given["export"]))
    if "images" in given:
        _write_scores(Path(given["directory"]), given["images"], Path(given["scores"]))


def _write_scores(directory: Path, images: list[str], file: Path) -> None:
    """Write the scores of the saved detector, computed by torch."""
    from csflow.data.images import read_image
    from csflow.detector.detector import Detector

    predictions = Detector.load(directory).predict([read_image(Path(name)) for name in images])
    file.write_text(json.dumps([prediction.score for prediction in predictions]))


def _named(name: str) -> Any:
    for module in MODULES[name]:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            continue
        if found is not None:
            return found
    raise SystemExit(f"This checkout has no {name} in {' or '.join(MODULES[name])}. Extend servers/make_detector.py.")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
