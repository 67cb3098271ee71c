"""``csflow serve``, ``promote``, ``rollback`` and ``reconcile``: what a person types and reads."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from csflow.adapters import serving
from csflow.adapters.deployment.cluster import ClusterEndpoints
from csflow.adapters.deployment.endpoints import Release
from csflow.adapters.deployment.inference_service import DesiredService
from csflow.adapters.deployment.local import LocalLock
from csflow.adapters.deployment.local_process import LocalEndpoint
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.serving import ServedDetector, ServerOptions
from csflow.adapters.serving.served import Wanted
from csflow.cli.endpoint import endpoint
from csflow.cli.lines import lines as lines_command
from csflow.cli.promote import promote_version
from csflow.cli.reconcile import reconcile_endpoint
from csflow.cli.rollback import rollback_champion
from csflow.cli.serve import serve_lines
from csflow.config import load_line
from csflow.errors import ConfigError, CsflowError, DeployError, ModelError, UsageError
from csflow.release import deployment, promotion
from csflow.release.promotion import Promotion
from csflow.system.ports import bind
from csflow.system.workspace import Workspace
from tests.csflow.kubernetes_server import Cluster

ENDPOINT = LocalEndpoint("tiles", "http://127.0.0.1:4000", "127.0.0.1:4001", 1, "s", "d", "2", "log")
DONE = Promotion("rolled_back", "because", 2, ENDPOINT)


def run(command: object, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CsflowError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    (tmp_path / "tiles.yaml").write_text("line: tiles\ndata: {path: data/tiles}\n")
    monkeypatch.setenv("CSFLOW_LINES", str(tmp_path))


def test_endpoint_shows_what_answers_and_what_is_tried_beside_it(cluster: Cluster) -> None:
    line = load_line("tiles")
    assert "nothing answers" in run(endpoint, "tiles")
    service = ClusterEndpoints(Workspace(Path("nowhere"))).service(line, LocalLock())
    one, two = (Release(str(n), f"{n}" * 64, f"s3://store/detectors/tiles/{f'{n}' * 64}/") for n in (1, 2))
    service.apply(DesiredService(one))
    service.apply(DesiredService(one, None, two, 10))
    shown = run(endpoint, "tiles")
    for part in ("http://tiles.example.com serves version 1", "version 2 at 10 %", "kubectl logs -n factory"):
        assert part in shown


def test_endpoint_prints_the_inference_service_of_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"kind": "InferenceService", "spec": {"predictor": {"model": {"storageUri": "s3://b/tiles/d/"}}}}
    monkeypatch.setattr(deployment, "champion_document", lambda _, line: document | {"line": line.line})
    assert yaml.safe_load(run(endpoint, "tiles", "--yaml")) == document | {"line": "tiles"}


def test_lines_are_listed_although_their_cluster_does_not_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "find_champion", lambda *_: None)
    monkeypatch.setattr(Registry, "get_hold", lambda *_: None)
    cluster.denied.add(("get", "inferenceservices"))
    (row,) = json.loads(run(lines_command, "--json"))
    assert row["endpoint"] is None
    assert 'verbs ["get"]' in row["endpoint_error"]
    assert "unknown" in run(lines_command)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Calls of the steps behind the commands, which have their own tests."""
    calls: list[tuple[object, ...]] = []

    def fake(name: str, result: object) -> None:
        def step(_: object, line: object, *rest: object, **named: object) -> object:
            calls.append((name, getattr(line, "line", line), *rest, *named.values()))
            return result

        monkeypatch.setattr(promotion, name, step)

    for name in ("promote_by_hand", "rollback", "reconcile"):
        fake(name, DONE)
    fake("release_hold", {"user": "ada", "time": "2031-01-01"})
    return calls


def test_promote_serves_a_version(called: list[tuple[object, ...]]) -> None:
    assert "version 2 is champion, served at http://127.0.0.1:4000" in run(promote_version, "tiles@2")
    assert called == [("promote_by_hand", "tiles", 2)]


def test_promote_releases_a_hold(called: list[tuple[object, ...]]) -> None:
    assert "the hold of ada from 2031-01-01 is gone" in run(promote_version, "tiles", "--release-hold")
    assert called == [("release_hold", "tiles")]


@pytest.mark.parametrize("arguments", [["tiles"], ["tiles@2", "--release-hold"], ["tiles@two"]])
def test_promote_says_what_it_needs(called: list[tuple[object, ...]], arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="version"):
        run(promote_version, *arguments)
    assert called == []


def test_rollback(called: list[tuple[object, ...]]) -> None:
    output = run(rollback_champion, "tiles", "--to", "2", "--reason", "false alarms")
    assert "version 2 is champion again" in output
    assert "csflow promote tiles --release-hold" in output
    assert called == [("rollback", "tiles", 2, "false alarms")]


def test_reconcile(called: list[tuple[object, ...]]) -> None:
    assert "tiles: because, served at http://127.0.0.1:4000" in run(reconcile_endpoint, "tiles")


@pytest.mark.parametrize(
    ("command", "name"), [(promote_version, "tile@1"), (rollback_champion, "tile"), (reconcile_endpoint, "tile")]
)
def test_a_mistyped_line_is_suggested(command: object, name: str) -> None:
    with pytest.raises(ConfigError, match="Did you mean tiles"):
        run(command, name)


Asked = list[tuple[dict[str, ServedDetector], str, ServerOptions]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the server is asked to serve, without starting one."""
    asked: Asked = []

    def record(wanted: Wanted, listeners: list[socket.socket], options: ServerOptions) -> None:
        (listener,) = listeners
        asked.append((dict(wanted()), listener.getsockname()[0], options))

    monkeypatch.setattr(serving, "serve_detectors", record)
    return asked


def detector(folder: Path, line: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"line": {{"line": "{line}"}}}}')
    return folder


def test_serve_takes_detector_directories_and_prints_an_example(served: Asked, tmp_path: Path) -> None:
    one, other = detector(tmp_path / "one", "tiles"), detector(tmp_path / "other", "nuts")
    output = run(serve_lines, str(one), str(other), "--port", "0", "--grpc-port", "7")
    assert served == [
        ({"tiles": ServedDetector(one), "nuts": ServedDetector(other)}, "127.0.0.1", ServerOptions(grpc_port=7))
    ]
    assert "Serving tiles, nuts at http://127.0.0.1:" in output
    assert "/v1/models/tiles:predict" in output


def test_serve_hands_its_options_on(served: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_TOKENS", "a" * 64)
    directory = detector(tmp_path / "one", "tiles")
    output = run(serve_lines, str(directory), "--port", "0", "--watch", "5", "--max-memory", "1Gi", "--docs")
    ((_, _, options),) = served
    assert (options.watch_seconds, options.max_memory, options.documented) == (5.0, 2**30, True)
    assert options.tokens is not None
    assert '-H "Authorization: Bearer $TOKEN"' in output
    with pytest.raises(UsageError, match="both files"):
        run(serve_lines, str(directory), "--tls-cert", str(directory))
    with pytest.raises(UsageError, match="No such file"):
        run(serve_lines, str(directory), "--tokens", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="800M"):
        run(serve_lines, str(directory), "--max-memory", "much")


def test_serve_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Say what to serve"):
        run(serve_lines)
    with pytest.raises(UsageError, match="Say what to serve"):
        run(serve_lines, "tiles", "--all")
    with pytest.raises(UsageError, match="No line has a champion"):
        run(serve_lines, "--all", "--port", "0")
    with pytest.raises(ModelError, match="is not a detector directory"):
        run(serve_lines, str(tmp_path), "--port", "0")
    twice = detector(tmp_path / "one", "tiles"), detector(tmp_path / "other", "tiles")
    with pytest.raises(UsageError, match="same line"):
        run(serve_lines, *map(str, twice), "--port", "0")


def test_serve_names_a_port_in_use(tmp_path: Path) -> None:
    directory = detector(tmp_path / "one", "tiles")
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=f"Port {port} on 127.0.0.1 is in use"):
            run(serve_lines, str(directory), "--port", str(port))
