"""The demo line by all three ways to run it: steps as processes, steps in containers, steps against servers.

Nothing is shortened: this is what ``make demo`` trains. Only environment variables and ``--runner`` tell the three
apart, and each has a workspace of its own, so that none finds what another computed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.errors import UsageError
from csflow.system.workspace import Workspace
from pipelines import containers
from tests.servers import mlflow_server, object_store, postgres

pytestmark = [pytest.mark.docker, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).resolve().parents[2]
LINE = "demo-texture"


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What ``summary.json`` says of each run."""
    try:
        containers.check_engine()
    except UsageError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("profiles")
    found = {
        "subprocess": _run(root / "subprocess"),
        "docker": _run(root / "docker", "--runner", "docker"),
    }
    with postgres(root) as database, object_store(root) as store, mlflow_server(database, store, root) as server:
        variables = {"MLFLOW_TRACKING_URI": server, "CSFLOW_STORE": f"{store.uri}/csflow", **store.environment}
        found["servers"] = _run(root / "servers", **variables)
        digest = found["servers"]["detector"] = _served(root / "servers")
        assert f"csflow/detectors/{LINE}/{digest}.index.json" in store.keys("csflow/detectors/")
        LocalEndpoints(Workspace(root / "servers")).stop(LINE)
    for name in ("subprocess", "docker"):
        found[name]["detector"] = _served(root / name)
        LocalEndpoints(Workspace(root / name)).stop(LINE)
    return found


def test_the_data_and_what_is_made_of_it_have_one_digest(summaries: dict[str, dict[str, Any]]) -> None:
    for fact in ("data_digest", "data_md5", "git_rev", "outcome", "promise", "alpha"):
        assert len({json.dumps(summary[fact]) for summary in summaries.values()}) == 1, fact
    assert summaries["docker"]["outcome"] == "promoted"
    for name, summary in summaries.items():
        assert set(summary["seconds"]) == set(summaries["subprocess"]["seconds"]), f"{name}: every step ran"


def test_the_metrics_agree(summaries: dict[str, dict[str, Any]]) -> None:
    reference = summaries["subprocess"]
    assert reference["image_auroc"] > 0.9, "a line that is told apart at all"
    for name, summary in summaries.items():
        assert summary["image_auroc"] == pytest.approx(reference["image_auroc"], abs=5e-3), name
        assert summary["pixel_auroc"] == pytest.approx(reference["pixel_auroc"], abs=5e-3), name
        assert summary["threshold"] == pytest.approx(reference["threshold"], rel=1e-2), name


def test_each_serves_what_it_promoted(summaries: dict[str, dict[str, Any]]) -> None:
    for name, summary in summaries.items():
        assert summary["endpoint"], f"{name}: after the run its champion is served on this machine"
        assert len(summary["detector"]) == 64, name


def _run(home: Path, *words: str, **variables: str) -> dict[str, Any]:
    elsewhere = ("MLFLOW_", "AWS_", "CSFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    image = {name: os.environ[name] for name in ("CSFLOW_IMAGE",) if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", LINE, *words],
        cwd=ROOT,
        env=environment | image | variables | {"CSFLOW_HOME": str(home), "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    summary: dict[str, Any] = json.loads((home / "summary.json").read_text())
    return summary


def _served(home: Path) -> str:
    """Digest of the detector that answers for the line."""
    endpoint = LocalEndpoints(Workspace(home)).status(LINE)
    assert endpoint is not None, f"nothing serves {LINE} in {home}"
    return endpoint.digest
