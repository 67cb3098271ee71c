"""A line's endpoint as a local process: a detached KServe model server on the loopback address.

A new detector is started beside the one that serves (:func:`start_candidate`), tried by the caller, and then
either takes over (:func:`switch`) or goes (:func:`discard`). ``endpoints/LINE.json`` names the process that
serves; ``endpoints/LINE.processes/`` records every process ever started and not yet seen to end, so that none
outlives a crash of the caller unnoticed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from csflow.adapters.deployment.endpoint import Endpoint, request_bodies
from csflow.errors import DeployError
from csflow.system import processes
from csflow.system.files import sha256_tree, write_json
from csflow.system.ports import bind, free_port
from csflow.system.workspace import Workspace

HOST = "127.0.0.1"
SERVER = (sys.executable, "-m", "csflow.adapters.serving")
READY_SECONDS = 180.0
STOP_SECONDS = 35.0
LOG_LINES = 15


@dataclass(frozen=True)
class LocalEndpoint:
    """A server process of one line.

    Attributes:
        line: The line, and the name its model is served under.
        url: Address of the REST server.
        grpc_url: ``host:port`` of the gRPC server.
        pid: Process id.
        started: When the process started, as the system tells it: with ``pid`` it names one process for good.
        digest: Digest of the detector directory.
        version: Registered version.
        log: File with everything the process has written.
    """

    line: str
    url: str
    grpc_url: str
    pid: int
    started: str
    digest: str
    version: str
    log: str

    @property
    def beside(self) -> str:
        """Nothing is tried beside a local endpoint: a candidate serves nobody."""
        return ""

    @property
    def port(self) -> int:
        """Port of the REST server."""
        return int(self.url.rpartition(":")[2])


@dataclass(frozen=True)
class Candidate:
    """A server that is ready but does not serve the line yet.

    Attributes:
        endpoint: Where it can be tried.
        directory: The detector it serves.
        port: The port it will serve on; 0 for the one it has.
    """

    endpoint: LocalEndpoint
    directory: Path
    port: int


def start_candidate(
    workspace: Workspace,
    line: str,
    directory: Path,
    version: str,
    *,
    port: int = 0,
    deadline: float = READY_SECONDS,
) -> Candidate:
    """Start a server for a detector and wait until it is ready; what serves the line is left alone.

    Args:
        workspace: Where states and logs lie.
        line: The line.
        directory: A detector directory.
        version: Its registered version, shown in answers.
        port: REST port of the line; 0 for any free one. While the line's present server holds it, the
            candidate is tried on another one.
        deadline: Seconds until it must be ready.

    Raises:
        DeployError: If the port is in use by something else, or the server ends or does not get ready; its last
            log lines are part of the message.
    """
    sweep(workspace, line)
    former = status(workspace, line)
    held = former is not None and former.port == port
    endpoint = _launch(workspace, line, directory, version, 0 if held else port, deadline)
    return Candidate(endpoint, directory, port)


def switch(workspace: Workspace, candidate: Candidate) -> LocalEndpoint:
    """Let a candidate serve its line, then stop the server it replaces.

    With a fixed port that the former server holds, a second server is started on the same port first: both
    answer until the former one has finished its requests. (Only a connection opened in the very moment in
    which that one stops listening may be reset.)

    Raises:
        DeployError: If the candidate is no longer there; the former server then goes on.
    """
    endpoint = candidate.endpoint
    if not healthy(endpoint):
        raise DeployError(f"The new server of {endpoint.line} at {endpoint.url} is gone. See {endpoint.log}.")
    if candidate.port not in (0, endpoint.port):
        endpoint = _launch(
            workspace,
            endpoint.line,
            candidate.directory,
            endpoint.version,
            candidate.port,
            READY_SECONDS,
            digest=endpoint.digest,
        )
    write_json(_state_file(workspace, endpoint.line), asdict(endpoint))
    sweep(workspace, endpoint.line)
    return endpoint


def discard(workspace: Workspace, candidate: Candidate) -> None:
    """Stop a candidate that shall not serve."""
    _end(workspace, candidate.endpoint)


def ensure(
    workspace: Workspace,
    line: str,
    directory: Path,
    version: str,
    *,
    port: int = 0,
    deadline: float = READY_SECONDS,
) -> LocalEndpoint:
    """Make this detector the one that serves; nothing happens if it does so already.

    Raises:
        DeployError: As :func:`start_candidate`.
    """
    present = status(workspace, line)
    if present is not None and serves(present, sha256_tree(directory), version, port):
        return present
    return switch(workspace, start_candidate(workspace, line, directory, version, port=port, deadline=deadline))


def serves(endpoint: LocalEndpoint, digest: str, version: str, port: int = 0) -> bool:
    """Whether an endpoint answers with this detector under this version, on this port unless 0."""
    same = (endpoint.digest, endpoint.version) == (digest, version) and port in (0, endpoint.port)
    return same and healthy(endpoint)


def status(workspace: Workspace, line: str) -> LocalEndpoint | None:
    """The line's endpoint, or ``None`` if its process is not there (any more)."""
    endpoint = _read(_state_file(workspace, line))
    return endpoint if endpoint is not None and _alive(endpoint) else None


def stop(workspace: Workspace, line: str) -> bool:
    """Stop the line's endpoint and whatever else is left of it; whether it was running."""
    running = status(workspace, line) is not None
    _state_file(workspace, line).unlink(missing_ok=True)
    sweep(workspace, line)
    return running


def sweep(workspace: Workspace, line: str) -> None:
    """Stop the line's processes that do not serve it: replaced ones, and candidates of a crashed promotion."""
    serving = _read(_state_file(workspace, line))
    for record in sorted(_records(workspace, line).glob("*.json")):
        endpoint = _read(record)
        if endpoint is None:
            record.unlink(missing_ok=True)
        elif endpoint != serving:
            _end(workspace, endpoint)


def healthy(endpoint: LocalEndpoint) -> bool:
    """Whether the endpoint's process is there and its model is ready."""
    return _alive(endpoint) and _ready(endpoint)


def score(
    endpoint: Endpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False, timeout: float = 120.0
) -> list[dict[str, Any]]:
    """Score encoded images through the endpoint, in the order given.

    Raises:
        DeployError: If it cannot be reached or refuses an image; its own reason is part of the message.
    """
    url = f"{endpoint.url}/v1/models/{endpoint.line}:predict"
    answers: list[dict[str, Any]] = []
    for body in request_bodies(images, heatmap=heatmap, boxes=boxes):
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        try:
            with _opener().open(request, timeout=timeout) as response:
                answers += json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:1000]
            raise DeployError(f"{url} answered {error.code}: {reason}") from error
        except (OSError, ValueError, KeyError) as error:
            raise DeployError(f"{url} cannot be reached: {error}. See {endpoint.log}.") from error
    return answers


def _launch(
    workspace: Workspace,
    line: str,
    directory: Path,
    version: str,
    port: int,
    deadline: float,
    *,
    digest: str | None = None,
) -> LocalEndpoint:
    """Start a detached server process, record it, and wait until its model is ready."""
    log = workspace.endpoints / f"{line}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    digest = digest or sha256_tree(directory)
    grpc_port = free_port(HOST)
    with ExitStack() as opened:
        # The child inherits bound sockets: between choosing a port and using it nobody can take it.
        listeners = [opened.enter_context(listener) for listener in _bound(workspace, line, port)]
        output = opened.enter_context(log.open("ab"))
        offset = output.tell()
        public, private = _url(listeners[0]), _url(listeners[-1])
        descriptors = [listener.fileno() for listener in listeners]
        command = [*SERVER, "--model", f"{line}={directory}", "--version", f"{line}={version}"]
        command += [*(f"--fd={descriptor}" for descriptor in descriptors), f"--grpc-port={grpc_port}"]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=descriptors,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        except OSError as error:
            raise DeployError(f"The server of {line} cannot be started: {error}.") from error
    started = processes.start_time(process.pid) or ""
    endpoint = LocalEndpoint(line, public, f"{HOST}:{grpc_port}", process.pid, started, digest, version, str(log))
    write_json(_record(workspace, endpoint), asdict(endpoint))
    try:
        _wait_until_ready(replace(endpoint, url=private), process, deadline, offset)
    except BaseException:
        _end(workspace, endpoint)
        raise
    return endpoint


def _bound(workspace: Workspace, line: str, port: int) -> list[socket.socket]:
    """Bind the line's port; only the line's own present server may hold a fixed one already.

    A fixed port comes with a private one, listened on later: on the fixed one the former server may answer
    in place of the new, so that only the private one tells when the new is ready.
    """
    if port == 0:
        return [bind(HOST, 0)]
    present = status(workspace, line)
    if present is None or present.port != port:
        bind(HOST, port).close()  # without sharing: refused if anybody at all uses it
    return [bind(HOST, port, share=True), bind(HOST, 0)]


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


def _wait_until_ready(endpoint: LocalEndpoint, process: subprocess.Popen[bytes], deadline: float, offset: int) -> None:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if process.poll() is not None:
            raise DeployError(
                f"The server of {endpoint.line} ended with status {process.returncode} before it was ready.\n"
                + _last_lines(Path(endpoint.log), offset)
            )
        if _ready(endpoint):
            return
        time.sleep(0.1)
    raise DeployError(
        f"The server of {endpoint.line} was not ready after {deadline:g} seconds.\n"
        + _last_lines(Path(endpoint.log), offset)
    )


def _last_lines(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join([f"Last lines of {log}:", *(lines[-LOG_LINES:] or ["(nothing)"])])


def _ready(endpoint: LocalEndpoint) -> bool:
    # Not /v2/health/ready: that is 200 without any model.
    try:
        with _opener().open(f"{endpoint.url}/v2/models/{endpoint.line}/ready", timeout=5) as response:
            return bool(json.load(response).get("ready"))
    except (OSError, ValueError):
        return False


def _opener() -> urllib.request.OpenerDirector:
    """An HTTP client that never sends loopback requests to a proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _end(workspace: Workspace, endpoint: LocalEndpoint) -> None:
    processes.end(endpoint.pid, endpoint.started, patience=STOP_SECONDS)
    _record(workspace, endpoint).unlink(missing_ok=True)


def _alive(endpoint: LocalEndpoint) -> bool:
    return processes.is_running(endpoint.pid, endpoint.started)


def _read(path: Path) -> LocalEndpoint | None:
    """What a state file says; ``None`` if there is none, or one that another version wrote."""
    try:
        return LocalEndpoint(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _state_file(workspace: Workspace, line: str) -> Path:
    return workspace.endpoints / f"{line}.json"


def _records(workspace: Workspace, line: str) -> Path:
    return workspace.endpoints / f"{line}.processes"


def _record(workspace: Workspace, endpoint: LocalEndpoint) -> Path:
    return _records(workspace, endpoint.line) / f"{endpoint.pid}.json"
