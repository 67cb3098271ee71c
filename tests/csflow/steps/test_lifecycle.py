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

from csflow.adapters import deployment
from csflow.adapters.mlflow import registry, tracking
from csflow.config import DataConfig, LineConfig
from csflow.release import promotion
from csflow.release.gate import GateDecision
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
    deployment.stop(place, "tiles")


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
    tracking.initialise(workspace)
    for seed in (1, 2):
        directory = make_detector("tiles", seed=seed)
        tags = {"content_key": str(seed), "detector_digest": sha256_tree(directory)}
        run = tracking.start_run(workspace, "tiles", params={}, tags={})
        assert registry.register(workspace, directory, line="tiles", run_id=run, tags=tags, example=picture()) == seed

    first = promotion.promote(workspace, line, 1, lambda: BETTER)
    assert first.outcome == "promoted"
    assert first.endpoint is not None
    (said,) = deployment.score(first.endpoint, [picture()])
    assert said["version"] == "1"

    # A crash between switch and alias: version 2 is served, version 1 is champion.
    crash = {"armed": True}
    move = registry.set_alias

    def set_alias(*arguments: object) -> None:
        if crash.pop("armed", False):
            raise KeyboardInterrupt
        move(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "set_alias", set_alias)
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(workspace, line, 2, lambda: BETTER)
    serving = deployment.status(workspace, "tiles")
    assert serving is not None
    assert serving.version == "2"
    assert registry.find_version(workspace, "tiles").version == 1

    done = promotion.reconcile(workspace, line)
    assert "version 2 was served instead of champion version 1" in done.reason
    assert done.endpoint is not None
    assert deployment.score(done.endpoint, [picture()])[0]["score"] == pytest.approx(said["score"], rel=1e-5)
    assert promotion.reconcile(workspace, line).endpoint == done.endpoint

    second = promotion.promote(workspace, line, 2, lambda: BETTER)
    assert (second.outcome, registry.find_version(workspace, "tiles").version) == ("promoted", 2)

    back = promotion.rollback(workspace, line, reason="false alarms")
    assert (back.champion, registry.find_version(workspace, "tiles").version) == (1, 1)
    hold = registry.get_hold(workspace, "tiles")
    assert hold is not None
    assert hold["reason"] == "false alarms"
    assert promotion.release_hold(workspace, "tiles") == hold
    assert registry.get_hold(workspace, "tiles") is None
    status = deployment.status(workspace, "tiles")
    assert status is not None
    assert status.version == "1"


def test_a_replacement_on_a_fixed_port_loses_no_request(
    workspace: Workspace, make_detector: Callable[..., Path]
) -> None:
    port = free_port("127.0.0.1")
    first = deployment.ensure(workspace, "tiles", make_detector("tiles", seed=1), "1", port=port)
    seen: list[str] = []
    lost: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            try:
                seen.append(deployment.score(first, [picture()])[0]["version"])
            except Exception as error:
                lost.append(error)

    client = threading.Thread(target=ask)
    client.start()
    try:
        deployment.ensure(workspace, "tiles", make_detector("tiles", seed=2), "2", port=port)
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
