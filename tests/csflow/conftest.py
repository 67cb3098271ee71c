"""A detector that takes a second to make (real features, one block, no training), an S3 store, a cluster."""

from __future__ import annotations

import functools
import itertools
import shutil
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
    """A function ``(line, seed=0, calibrated=True) -> directory`` of the caller's own; each detector is made once."""
    import torch

    from csflow.config import CalibrationConfig, DataConfig, FeatureConfig, FlowConfig, LineConfig
    from csflow.detector.calibration import calibrate
    from csflow.detector.detector import Detector
    from csflow.detector.kinds.cross_scale_flow import FlowModel
    from csflow.features.backbone import load_backbone
    from csflow.flow.cross_scale import CrossScaleFlow

    features, shape = FeatureConfig(image_size=128), FlowConfig(blocks=1, hidden=8)
    backbone = load_backbone(features)

    @functools.cache
    def made(line: str, seed: int, calibrated: bool) -> Path:
        directory = tmp_path_factory.mktemp("made") / line
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

    def make(line: str, *, seed: int = 0, calibrated: bool = True) -> Path:
        directory = tmp_path_factory.mktemp("detector") / line
        return Path(shutil.copytree(made(line, seed, calibrated), directory))

    return make


_buckets = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3-compatible server over HTTP."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of this test's own; the environment says how to reach it."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "CSFLOW_STORE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    name = f"plant-{next(_buckets)}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster over HTTP with KServe on it, which csflow's environment points to; promotions are quick there."""
    from csflow.adapters.deployment import canary

    made = Cluster()
    for name in ("KUBERNETES_SERVICE_HOST", "CSFLOW_NAMESPACE", "CSFLOW_SERVE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(canary, "PACE", canary.Pace(ready=1.0, again=0.5, poll=0.05))
    with contextmanager(serve_cluster)(made) as address:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", address)))
        monkeypatch.setenv("CSFLOW_ENDPOINTS", "kubernetes")
        yield made
