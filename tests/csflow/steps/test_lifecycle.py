"""Two versions of a line through promotion, a crash, rollback and hold: real registry, real server processes."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.deployment.local_process import LocalEndpoint
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.config import DataConfig, LineConfig
from csflow.release import promotion
from csflow.release.gate import GateDecision
from csflow.runs.services import Services
from csflow.system.files import sha256_tree
from csflow.system.ports import free_port
from csflow.system.workspace import Workspace

BETTER = GateDecision("promoted", "it is better")

pytestmark = pytest.mark.slow


@pytest.fixture
def line() -> LineConfig:
    return LineConfig(line="tiles", data=DataConfig(path="data/tiles"))


@pytest.fixture
def workspace(home: Path) -> Iterator[Workspace]:
    place = Workspace(home)
    yield place
    LocalEndpoints(place).stop("tiles")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_line_lives_through_promotion_crash_rollback_and_hold(
    workspace: Workspace,
    line: LineConfig,
    make_detector: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = Services.of(workspace)
    services.tracker.initialise()
    for seed in (1, 2):
        directory = make_detector("tiles", seed=seed)
        tags = {"content_key": str(seed), "detector_digest": sha256_tree(directory)}
        run = Tracker(workspace).start_run("tiles", params={}, tags={})
        assert Registry(workspace).register(directory, line="tiles", run_id=run, tags=tags, example=picture()) == seed

    first = promotion.promote(services, line, 1, lambda: BETTER)
    assert first.outcome == "promoted"
    assert first.endpoint is not None
    (said,) = LocalEndpoints(workspace).score(first.endpoint, [picture()])
    assert said["version"] == "1"

    # A crash between switch and alias: version 2 is served, version 1 is champion.
    crash = {"armed": True}
    move = Registry.set_alias

    def set_alias(*arguments: object) -> None:
        if crash.pop("armed", False):
            raise KeyboardInterrupt
        move(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "set_alias", set_alias)
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(services, line, 2, lambda: BETTER)
    serving = LocalEndpoints(workspace).status("tiles")
    assert serving is not None
    assert serving.version == "2"
    assert Registry(workspace).find_version("tiles").version == 1

    done = promotion.reconcile(services, line)
    assert "version 2 was served instead of champion version 1" in done.reason
    assert done.endpoint is not None
    assert LocalEndpoints(workspace).score(done.endpoint, [picture()])[0]["score"] == pytest.approx(
        said["score"], rel=1e-5
    )
    assert promotion.reconcile(services, line).endpoint == done.endpoint

    second = promotion.promote(services, line, 2, lambda: BETTER)
    assert (second.outcome, Registry(workspace).find_version("tiles").version) == ("promoted", 2)

    back = promotion.rollback(services, line, reason="false alarms")
    assert (back.champion, Registry(workspace).find_version("tiles").version) == (1, 1)
    hold = Registry(workspace).get_hold("tiles")
    assert hold is not None
    assert hold["reason"] == "false alarms"
    assert promotion.release_hold(services, "tiles") == hold
    assert Registry(workspace).get_hold("tiles") is None
    status = LocalEndpoints(workspace).status("tiles")
    assert status is not None
    assert status.version == "1"


def serve(workspace: Workspace, directory: Path, version: str, port: int) -> LocalEndpoint:
    endpoints = LocalEndpoints(workspace)
    return endpoints.switch(endpoints.start_candidate("tiles", directory, version, port=port))


def test_a_replacement_on_a_fixed_port_loses_no_request(
    workspace: Workspace, make_detector: Callable[..., Path]
) -> None:
    port = free_port("127.0.0.1")
    first = serve(workspace, make_detector("tiles", seed=1), "1", port)
    seen: list[str] = []
    lost: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            try:
                seen.append(LocalEndpoints(workspace).score(first, [picture()])[0]["version"])
            except Exception as error:
                lost.append(error)

    client = threading.Thread(target=ask)
    client.start()
    try:
        serve(workspace, make_detector("tiles", seed=2), "2", port)
        stop.wait(1)
    finally:
        stop.set()
        client.join()
    assert set(seen) == {"1", "2"}
    assert seen[-1] == "2"
    assert len(lost) <= 1  # opened in the very moment the former server stopped listening
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/v2/models")
    assert json.loads(connection.getresponse().read()) == {"models": ["tiles"]}
