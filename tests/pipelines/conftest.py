"""A Kubeflow Pipelines server that speaks HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import submission
from pipelines.package import Graph, Package, compiled
from pipelines.placement import Placement
from tests.pipelines.kfp_server import KfpServer, running


@pytest.fixture
def kfp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    """An empty server, named by the environment; whatever it is asked must agree with the API's description."""
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", "CSFLOW_NAMESPACE", "CSFLOW_SERVICE_ACCOUNT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with running() as server:
        monkeypatch.setenv("CSFLOW_KFP_URL", server.url)
        yield server
    assert server.violations == []


_PACKAGES: dict[object, Package] = {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile equal graphs once for all tests here; ``test_package.py`` calls the compiler itself."""

    def remembered(graph: Graph, placement: Placement) -> Package:
        own = {key: value for key, value in os.environ.items() if key.startswith("CSFLOW_")}
        own.pop("CSFLOW_KFP_URL", None)
        own.pop("CSFLOW_HOME", None)
        key = (graph, placement.model_dump_json(), *sorted(own.items()))
        if key not in _PACKAGES:
            _PACKAGES[key] = compiled(graph, placement)
        return _PACKAGES[key]

    monkeypatch.setattr(submission, "compiled", remembered)
