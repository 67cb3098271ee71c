"""A real detector that takes a second to make (real features, one narrow block, no training), and a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.csflow.kubernetes_server import Cluster, kubeconfig
from tests.csflow.kubernetes_server import serve as serve_cluster

MakeDetector = Callable[..., Path]


@pytest.fixture(scope="session")
def make_detector(tmp_path_factory: pytest.TempPathFactory) -> MakeDetector:
    """A function ``(line, seed=0, calibrated=True) -> directory``; equal arguments give equal bytes."""
    import torch

    from csflow.backbone import load_backbone
    from csflow.calibration import calibrate
    from csflow.config import CalibrationConfig, DataConfig, FeatureConfig, FlowConfig, LineConfig
    from csflow.detector import Detector
    from csflow.flow import CrossScaleFlow
    from csflow.model import FlowModel

    features, shape = FeatureConfig(image_size=128), FlowConfig(blocks=1, hidden=8)
    backbone = load_backbone(features)

    def make(line: str, *, seed: int = 0, calibrated: bool = True) -> Path:
        directory = tmp_path_factory.mktemp("detector") / line
        torch.manual_seed(seed)
        flow = CrossScaleFlow(shape, channels=backbone.channels, scales=features.scales, permutation_seed=seed)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        draw = np.random.default_rng(seed)
        calibration = calibrate(
            draw.uniform(5.0, 10.0, 40),
            draw.uniform(0.0, 2000.0, (40, 4, 4)),
            CalibrationConfig() if calibrated else "none",
        )
        config = LineConfig(line=line, data=DataConfig(path=f"data/{line}"), features=features, flow=shape)
        Detector(config, backbone, FlowModel(flow, config.scoring), calibration, {"seed": seed}).save(directory)
        return directory

    return make


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster over HTTP with KServe on it, which csflow's environment points to; promotions are quick there."""
    from csflow.steps import canary

    made = Cluster()
    for name in ("KUBERNETES_SERVICE_HOST", "CSFLOW_NAMESPACE", "CSFLOW_SERVE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(canary, "PACE", canary.Pace(ready=1.0, again=0.5, poll=0.05))
    with contextmanager(serve_cluster)(made) as address:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", address)))
        monkeypatch.setenv("CSFLOW_ENDPOINTS", "kubernetes")
        yield made
