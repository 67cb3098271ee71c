"""A Kubeflow Pipelines server that speaks HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
