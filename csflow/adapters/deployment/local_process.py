"""Start, watch and stop the model server of a line as a detached process of this machine.

``endpoints/LINE.processes/`` records every process that was started and has not been seen to end, so that none
outlives a crash of its caller unnoticed. One that was started but not recorded, because its caller was killed in
between, is found by its family (:func:`family_of`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from csflow.adapters.deployment.endpoints import LOG_LINES
from csflow.errors import DamagedFileError, DeployError
from csflow.system import processes
from csflow.system.files import sha256_json, sha256_tree
from csflow.system.ports import bind, free_port
from csflow.system.process_family import FAMILY, Family
from csflow.system.seals import put_aside, read_sealed_json, write_sealed_json
from csflow.system.workspace import Workspace

HOST = "127.0.0.1"
SERVER = (sys.executable, "-m", "csflow.adapters.serving")
READY_SECONDS = 180.0
STOP_SECONDS = 35.0


@dataclass(frozen=True)
class LocalEndpoint:
    """A server process of one line.

    Attributes:
        line: The line, and the name its model is served under.
        url: Address of the REST server.
        grpc_url: ``host:port`` of the gRPC server.
        pid: Process id.
        started: Start of the process as the system reports it; with ``pid`` it identifies one process for good.
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
        """Return an empty string, because no requests go to a local candidate."""
        return ""

    @property
    def port(self) -> int:
        """Return the port of the REST server."""
        return int(self.url.rpartition(":")[2])


def launch(
    workspace: Workspace,
    line: str,
    directory: Path,
    version: str,
    port: int,
    deadline: float,
    *,
    digest: str | None = None,
) -> LocalEndpoint:
    """Start a detached server process, record it, and wait until its model is ready.

    Args:
        workspace: Where state files and logs are stored.
        line: The line.
        directory: The detector directory to serve.
        version: Its registered version, shown in answers.
        port: REST port; 0 for any free one.
        deadline: Seconds until it must be ready.
        digest: Digest of the directory, if it is known already.

    Raises:
        DeployError: If the port is taken, or the server ends or does not become ready; its last log lines are part of
            the message.
    """
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
        command = [*SERVER, "--model", f"{line}={directory}", "--version", f"{line}={version}"]
        process = _spawn([*command, f"--grpc-port={grpc_port}"], listeners, output, family_of(workspace, line))
    started = processes.start_time(process.pid) or ""
    endpoint = LocalEndpoint(line, public, f"{HOST}:{grpc_port}", process.pid, started, digest, version, str(log))
    write_sealed_json(_record_file(workspace, endpoint), asdict(endpoint))
    try:
        _wait_until_ready(replace(endpoint, url=private), process, deadline, offset)
    except BaseException:
        end(workspace, endpoint)
        raise
    return endpoint


def family_of(workspace: Workspace, line: str) -> Family:
    """Return the family of all servers that were ever started for a line, recorded or not."""
    return Family(f"endpoint-{sha256_json([str(workspace.endpoints.absolute()), line])[:24]}")


def _spawn(
    command: list[str], listeners: list[socket.socket], output: IO[bytes], family: Family
) -> subprocess.Popen[bytes]:
    """Start the server in its own session, with the sockets on which it is to answer.

    It belongs to no other family, because it outlives the run that starts it. It answers on loopback without a token,
    because whoever starts it, and asks if it is ready, has none.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "CSFLOW_TOKENS"}
    descriptors = [listener.fileno() for listener in listeners]
    try:
        return subprocess.Popen(
            [*command, *(f"--fd={descriptor}" for descriptor in descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=descriptors,
            env=inherited | {"PYTHONUNBUFFERED": "1", FAMILY: family.mark},
        )
    except OSError as error:
        raise DeployError(f"The server cannot be started: {error}. The command was: {' '.join(command)}") from error


def _bound(workspace: Workspace, line: str, port: int) -> list[socket.socket]:
    """Bind the line's port; only the line's own present server may hold a fixed one already.

    A fixed port comes with a private one, on which the server listens too: on the fixed port the former server may
    answer instead of the new one, so only the private port shows when the new one is ready.
    """
    if port == 0:
        return [bind(HOST, 0)]
    present = status(workspace, line)
    if present is None or present.port != port:
        bind(HOST, port).close()  # without sharing: refused if any process uses it
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
        if ready(endpoint):
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


def ready(endpoint: LocalEndpoint) -> bool:
    """Return True if the endpoint's model answers that it is ready."""
    # Not /v2/health/ready: that is 200 without any model.
    try:
        with opener().open(f"{endpoint.url}/v2/models/{endpoint.line}/ready", timeout=5) as response:
            return bool(json.load(response).get("ready"))
    except (OSError, ValueError):
        return False


def opener() -> urllib.request.OpenerDirector:
    """Return an HTTP client that never sends loopback requests to a proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def end(workspace: Workspace, endpoint: LocalEndpoint) -> None:
    """Stop a server process and remove its record."""
    processes.end(endpoint.pid, endpoint.started, patience=STOP_SECONDS)
    _record_file(workspace, endpoint).unlink(missing_ok=True)


def end_unrecorded(workspace: Workspace, line: str, serving: LocalEndpoint | None) -> None:
    """Stop the servers of a line that are running and do not serve it, recorded or not."""
    for process in family_of(workspace, line).members():
        if serving is None or process.pid != serving.pid:
            processes.end(process.pid, processes.start_time(process.pid) or "", patience=STOP_SECONDS)


def alive(endpoint: LocalEndpoint) -> bool:
    """Return True if the endpoint's process is running."""
    return processes.is_running(endpoint.pid, endpoint.started)


def read_state(path: Path) -> LocalEndpoint | None:
    """Read a state file.

    Returns:
        The endpoint; ``None`` if there is none, or another version of csflow wrote the file, or it was damaged, for
        which it is put aside.
    """
    if not path.exists():
        return None
    try:
        return LocalEndpoint(**read_sealed_json(path, required=False))
    except DamagedFileError as error:
        put_aside(path, str(error))
    except TypeError:
        pass
    return None


def state_file(workspace: Workspace, line: str) -> Path:
    """Return the path of the file that names the process which serves a line."""
    return workspace.endpoints / f"{line}.json"


def status(workspace: Workspace, line: str) -> LocalEndpoint | None:
    """Return the line's endpoint, or ``None`` if its process is not running."""
    endpoint = read_state(state_file(workspace, line))
    return endpoint if endpoint is not None and alive(endpoint) else None


def records_of(workspace: Workspace, line: str) -> Path:
    """Return the folder with a record of every process started for a line."""
    return workspace.endpoints / f"{line}.processes"


def _record_file(workspace: Workspace, endpoint: LocalEndpoint) -> Path:
    return records_of(workspace, endpoint.line) / f"{endpoint.pid}.json"
