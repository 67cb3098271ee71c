"""What an MLflow server refuses arrives as an error that names server, reason and remedy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from csflow.adapters.mlflow import connection
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.errors import RegistryError
from csflow.system.workspace import Workspace

Answer = tuple[int, str]
Serve = Callable[[Answer], str]
HOST = "Invalid Host header - possible DNS rebinding attack detected"
"""What MLflow's server says in plain text, with 403, when its --allowed-hosts do not name it."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that is healthy and gives every other request the same answer; its address."""
    running: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        status, body = answer

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                healthy = self.path == "/health"
                content = b"OK" if healthy else body.encode()
                self.send_response(200 if healthy else status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


ASKED: dict[str, Callable[[Workspace], object]] = {
    "open a run": lambda workspace: Tracker(workspace).start_run("tiles", params={}, tags={}),
    "write to a run": lambda workspace: Tracker(workspace).log_metrics("0" * 32, {"image_auroc": 1.0}),
    "close a run": lambda workspace: Tracker(workspace).finish("0" * 32, "promoted"),
    "list runs": lambda workspace: Tracker(workspace).list_runs("tiles", limit=1),
    "read a run": lambda workspace: Tracker(workspace).read_run("0" * 32),
    "read versions": lambda workspace: Registry(workspace).versions("tiles"),
    "tag a version": lambda workspace: Registry(workspace).set_version_tags("tiles", 1, {"decision": "promoted"}),
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((401, "You are not authenticated."), "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ((403, HOST), f"{HOST}.*Start the server with --allowed-hosts"),
        ((403, "Permission denied"), r"Permission denied.*\. Ask the server's administrator for the right"),
        ((404, "<html>Nothing here</html>"), "Is it an MLflow server. Correct MLFLOW_TRACKING_URI"),
        ((400, json.dumps({"error_code": "BAD_REQUEST", "message": "Too long"})), "Too long"),
    ],
)
def test_refusals_name_server_reason_and_remedy(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, expected: str
) -> None:
    address = serve(answer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for name, ask in ASKED.items():
        with pytest.raises(RegistryError, match=rf"(?s)MLflow at {address} refused: .*{expected}"):
            pytest.fail(f"{name}: {ask(Workspace(tmp_path))}")


def test_errors_of_our_own_stay_what_they_are(tmp_path: Path) -> None:
    @connection.typed_errors
    def ask(workspace: Workspace, answer: float) -> float:
        return 1 / answer

    assert ask(Workspace(tmp_path), 2.0) == 0.5
    with pytest.raises(ZeroDivisionError):
        ask(Workspace(tmp_path), 0.0)
