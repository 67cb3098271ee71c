"""Write a detector directory that takes a second to make: a real trunk, one narrow untrained block."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from csflow.config import CalibrationConfig, DataConfig, FeatureConfig, FlowConfig, LineConfig
from csflow.detector.calibration import calibrate
from csflow.detector.detector import Detector
from csflow.detector.kinds.cross_scale_flow import FlowModel
from csflow.features.backbone import load_backbone
from csflow.flow.cross_scale import CrossScaleFlow

features, shape = FeatureConfig(image_size=128), FlowConfig(blocks=1, hidden=8)
line = LineConfig(line="small", data=DataConfig(path="data/small"), features=features, flow=shape)
backbone = load_backbone(features)
model = FlowModel(CrossScaleFlow(shape, channels=backbone.channels, scales=features.scales), line.scoring)
calibration = calibrate(np.linspace(5.0, 10.0, 40), np.linspace(0.0, 99.0, 640).reshape(40, 4, 4), CalibrationConfig())
Detector(line, backbone, model, calibration, {}).save(Path(sys.argv[1]))
