"""Endpoints as local processes. A small stand-in server makes starting them quick; the last test is all real."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from csflow.adapters.deployment import endpoints, local_process
from csflow.adapters.deployment.local import LocalEndpoints, healthy, serves
from csflow.adapters.deployment.local_process import READY_SECONDS, LocalEndpoint
from csflow.errors import DeployError
from csflow.system import processes
from csflow.system.files import sha256_tree
from csflow.system.ports import bind, free_port
from csflow.system.workspace import Workspace
from tests.damage import inflict

STAND_IN = '''
"""Answers like the model server; the file ``behaviour`` in the detector directory says how it fails."""
import argparse, json, pathlib, signal, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
for name in ("--model", "--version", "--grpc-port"):
    parser.add_argument(name)
parser.add_argument("--fd", type=int, action="append")
options = parser.parse_args()
line, _, directory = options.model.partition("=")
behaviour = (pathlib.Path(directory) / "behaviour").read_text()
print("starting", behaviour, flush=True)
if behaviour == "crash":
    sys.exit("out of luck")
if behaviour == "hang":
    time.sleep(60)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        found = self.path == f"/v2/models/{line}/ready"
        self.answer(200 if found else 404, {"ready": found})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if behaviour == "refuse":
            self.answer(400, {"error": "instances[0] is no image"})
        version = options.version.partition("=")[2]
        self.answer(200, {"predictions": [{"score": 1.5, "version": version, "sent": i} for i in body["instances"]]})

    def answer(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass




class Server(ThreadingHTTPServer):
    daemon_threads = False  # requests in flight are finished

    def __init__(self, descriptor):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=descriptor)
        self.socket.listen(128)


def stop(*_):
    for server in servers:
        threading.Thread(target=server.shutdown).start()


if behaviour == "slow":
    time.sleep(1)
servers = [Server(descriptor) for descriptor in options.fd]
if behaviour != "stubborn":
    signal.signal(signal.SIGTERM, stop)
threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
for thread in threads:
    thread.start()
for thread, server in zip(threads, servers):
    thread.join()
    server.server_close()
'''


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace whose endpoints are stand-ins; none is left running."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(local_process, "SERVER", (sys.executable, str(script)))
    monkeypatch.setattr(local_process, "STOP_SECONDS", 5.0)
    place = Workspace(tmp_path / "home")
    yield place
    monkeypatch.setattr(local_process, "STOP_SECONDS", 0.2)
    for line in ("tiles", "nuts"):
        LocalEndpoints(place).stop(line)


def detector(workspace: Workspace, behaviour: str = "well", name: str = "a") -> Path:
    """Something that looks like a detector directory to the deployment."""
    directory = workspace.root / "detectors" / f"{name}-{behaviour}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "behaviour").write_text(behaviour)
    (directory / "name").write_text(name)
    return directory


def ensure(
    workspace: Workspace, line: str, directory: Path, version: str, *, port: int = 0, deadline: float = READY_SECONDS
) -> LocalEndpoint:
    """Serve a detector unless it is served already, as a promotion without a trial does."""
    endpoints = LocalEndpoints(workspace)
    present = endpoints.status(line)
    if present is not None and serves(present, sha256_tree(directory), version, port):
        return present
    return endpoints.switch(endpoints.start_candidate(line, directory, version, port=port, deadline=deadline))


def running(endpoint: LocalEndpoint) -> bool:
    return processes.is_running(endpoint.pid, endpoint.started)


def records(workspace: Workspace) -> list[Path]:
    return sorted((workspace.endpoints / "tiles.processes").glob("*.json"))


def test_an_endpoint_is_a_detached_process_with_a_state_file(workspace: Workspace) -> None:
    directory = detector(workspace)
    endpoint = ensure(workspace, "tiles", directory, "3")
    state = json.loads((workspace.endpoints / "tiles.json").read_text())
    assert state == asdict(endpoint) | {"seal": state["seal"]}
    assert (state["line"], state["version"], state["digest"]) == ("tiles", "3", sha256_tree(directory))
    assert set(state) >= {"url", "grpc_url", "pid", "started", "log"}
    assert os.getsid(endpoint.pid) == endpoint.pid
    assert "starting well" in Path(endpoint.log).read_text()
    assert LocalEndpoints(workspace).status("tiles") == endpoint
    assert healthy(endpoint)


def test_an_endpoint_asks_its_starter_for_no_token(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens for a server of one's own would lock out the promotion, which only knows their hashes."""
    monkeypatch.setenv("CSFLOW_TOKENS", "a" * 64)
    endpoint = ensure(workspace, "tiles", detector(workspace), "3")
    assert b"CSFLOW_TOKENS" not in Path(f"/proc/{endpoint.pid}/environ").read_bytes()


def test_the_same_detector_is_not_started_twice(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    assert ensure(workspace, "tiles", detector(workspace), "3") == first


@pytest.mark.parametrize(("name", "version"), [("b", "3"), ("a", "4")])
def test_another_detector_or_version_replaces_the_endpoint(workspace: Workspace, name: str, version: str) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    second = ensure(workspace, "tiles", detector(workspace, name=name), version)
    assert second.pid != first.pid
    assert LocalEndpoints(workspace).status("tiles") == second
    assert not running(first)
    assert len(records(workspace)) == 1


def test_a_candidate_serves_nothing_until_the_switch(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    candidate = LocalEndpoints(workspace).start_candidate("tiles", detector(workspace, name="b"), "4")
    assert LocalEndpoints(workspace).status("tiles") == first
    assert running(candidate.endpoint)
    LocalEndpoints(workspace).discard(candidate)
    assert not running(candidate.endpoint)
    assert LocalEndpoints(workspace).status("tiles") == first


def test_a_candidate_that_is_gone_does_not_replace_the_endpoint(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    candidate = LocalEndpoints(workspace).start_candidate("tiles", detector(workspace, name="b"), "4")
    LocalEndpoints(workspace).discard(candidate)
    with pytest.raises(DeployError, match="is gone"):
        LocalEndpoints(workspace).switch(candidate)
    assert LocalEndpoints(workspace).status("tiles") == first


def test_a_server_that_ends_early_shows_its_last_words(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    with pytest.raises(DeployError, match=r"ended with status 1(?s:.*)out of luck") as caught:
        ensure(workspace, "tiles", detector(workspace, "crash"), "4")
    assert "starting well" not in str(caught.value)  # the log lines of the other server
    assert LocalEndpoints(workspace).status("tiles") == first
    assert len(records(workspace)) == 1


def test_a_server_that_does_not_get_ready_is_stopped(workspace: Workspace) -> None:
    with pytest.raises(DeployError, match=r"not ready after 1 seconds(?s:.*)starting hang"):
        ensure(workspace, "tiles", detector(workspace, "hang"), "4", deadline=1)
    assert LocalEndpoints(workspace).status("tiles") is None
    assert records(workspace) == []


def test_a_port_in_use_is_named(workspace: Workspace) -> None:
    with bind("127.0.0.1", 0, share=True) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"Port {port} on 127.0.0.1 is in use"):
            ensure(workspace, "tiles", detector(workspace), "3", port=port)


def test_two_lines_cannot_have_one_port(workspace: Workspace) -> None:
    port = free_port("127.0.0.1")
    ensure(workspace, "nuts", detector(workspace), "1", port=port)
    with pytest.raises(DeployError, match=f"Port {port} on 127.0.0.1 is in use"):
        ensure(workspace, "tiles", detector(workspace), "1", port=port)


def test_a_fixed_port_answers_throughout_a_replacement(workspace: Workspace) -> None:
    port = free_port("127.0.0.1")
    first = ensure(workspace, "tiles", detector(workspace), "3", port=port)
    assert first.url == f"http://127.0.0.1:{port}"
    seen: list[str] = []
    lost: list[DeployError] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(LocalEndpoints(workspace).score(first, [b"x"])[0]["version"])
            except DeployError as error:
                lost.append(error)

    client = threading.Thread(target=ask)
    client.start()
    try:
        second = ensure(workspace, "tiles", detector(workspace, "slow"), "4", port=port)
        time.sleep(0.3)
    finally:
        stop.set()
        client.join()
    assert second.url == first.url
    assert not running(first)
    assert (seen[0], seen[-1]) == ("3", "4")
    # The kernel resets a connection that the former server has not accepted in the moment it closes.
    assert len(lost) <= 1
    assert len(records(workspace)) == 1
    assert ensure(workspace, "tiles", detector(workspace, "slow"), "4", port=port) == second


def test_a_state_of_a_dead_process_is_no_endpoint(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    processes.end(first.pid, first.started, patience=5)
    assert LocalEndpoints(workspace).status("tiles") is None
    assert LocalEndpoints(workspace).stop("tiles") is False
    second = ensure(workspace, "tiles", detector(workspace), "3")
    assert second.pid != first.pid
    assert len(records(workspace)) == 1


def test_a_number_used_again_by_another_process_is_no_endpoint(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    impostor = replace(first, pid=os.getpid(), started="before")
    (workspace.endpoints / "tiles.json").write_text(json.dumps(asdict(impostor)))
    assert LocalEndpoints(workspace).status("tiles") is None
    LocalEndpoints(workspace).stop("tiles")  # would end this test run if it trusted the number
    assert not running(first)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"line": "tiles"}', "another version", "a folder"])
def test_a_damaged_state_is_no_endpoint_and_its_process_is_not_forgotten(workspace: Workspace, damage: str) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    state = workspace.endpoints / "tiles.json"
    content = damage.encode()
    if damage == "another version":
        content = state.read_bytes().replace(b'"version": "3"', b'"version": "7"')
    inflict(state, None if damage == "a folder" else content)
    assert LocalEndpoints(workspace).named_digests("tiles") == {first.digest}, "its record still names it"
    assert LocalEndpoints(workspace).status("tiles") is None
    second = ensure(workspace, "tiles", detector(workspace), "3")
    assert not running(first)
    assert running(second)


def test_candidates_of_a_crashed_promotion_are_swept(workspace: Workspace) -> None:
    first = ensure(workspace, "tiles", detector(workspace), "3")
    forgotten = LocalEndpoints(workspace).start_candidate("tiles", detector(workspace, name="b"), "4")
    assert len(records(workspace)) == 2
    LocalEndpoints(workspace).sweep("tiles")
    assert not running(forgotten.endpoint)
    assert LocalEndpoints(workspace).status("tiles") == first


def test_stop_ends_even_a_stubborn_server(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = ensure(workspace, "tiles", detector(workspace, "stubborn"), "3")
    monkeypatch.setattr(local_process, "STOP_SECONDS", 0.2)
    assert LocalEndpoints(workspace).stop("tiles") is True
    assert not running(endpoint)
    assert LocalEndpoints(workspace).status("tiles") is None
    assert LocalEndpoints(workspace).stop("tiles") is False


def test_images_are_scored_in_order_and_in_portions(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked for a loopback address
    endpoint = ensure(workspace, "tiles", detector(workspace), "3")
    images = [bytes([number]) for number in range(endpoints.BATCH + 3)]
    answers = LocalEndpoints(workspace).score(endpoint, images, boxes=True)
    assert [answer["sent"]["image"]["b64"] for answer in answers] == [
        base64.b64encode(image).decode() for image in images
    ]
    assert answers[0]["sent"]["boxes"] is True


def test_a_refusal_and_an_unreachable_endpoint_are_told(workspace: Workspace) -> None:
    endpoint = ensure(workspace, "tiles", detector(workspace, "refuse"), "3")
    with pytest.raises(DeployError, match=r"answered 400: .*instances\[0\] is no image"):
        LocalEndpoints(workspace).score(endpoint, [b"x"])
    LocalEndpoints(workspace).stop("tiles")
    with pytest.raises(DeployError, match="cannot be reached"):
        LocalEndpoints(workspace).score(endpoint, [b"x"])


@pytest.mark.slow
def test_a_real_detector_is_served(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    import io

    from PIL import Image

    from csflow.detector.detector import Detector

    workspace, directory, buffer = Workspace(tmp_path), make_detector("tiles"), io.BytesIO()
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(buffer, "PNG")
    try:
        endpoint = ensure(workspace, "tiles", directory, "3")
        (answer,) = LocalEndpoints(workspace).score(endpoint, [buffer.getvalue()], heatmap=True)
        (prediction,) = Detector.load(directory).predict([picture])
        assert answer["score"] == pytest.approx(prediction.score, rel=1e-5)
        assert answer["version"] == "3"
        assert answer["heatmap"]
        with pytest.raises(DeployError, match="is not a detector directory"):
            ensure(workspace, "tiles", tmp_path / "nothing", "4")
        assert LocalEndpoints(workspace).status("tiles") == endpoint
    finally:
        assert LocalEndpoints(workspace).stop("tiles")
