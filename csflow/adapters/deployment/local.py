"""Serve lines by local processes: detached KServe model servers on the loopback address.

A new detector is started as a candidate next to the server in charge (:meth:`LocalEndpoints.start_candidate`), tried by
the caller, and then either takes over (:meth:`LocalEndpoints.switch`) or is stopped (:meth:`LocalEndpoints.discard`).
``endpoints/LINE.json`` names the process that serves.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csflow.adapters.deployment import local_process
from csflow.adapters.deployment.endpoints import (
    Approval,
    CanaryProgress,
    Deployed,
    Endpoint,
    EndpointLock,
    Release,
    Trial,
    digests_in,
    local_state_files,
    request_bodies,
)
from csflow.adapters.deployment.inference_service import DesiredService, document
from csflow.adapters.deployment.local_process import READY_SECONDS, LocalEndpoint, alive, launch, ready, state_file
from csflow.config import LineConfig
from csflow.errors import DeployError
from csflow.system.files import exclusive
from csflow.system.seals import write_sealed_json
from csflow.system.workspace import Workspace

REQUEST_SECONDS = 120.0
"""How long a request to a local endpoint may take."""


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


@dataclass
class LocalLock:
    """A lock on this machine, where promotions have no steps to record."""

    progress: CanaryProgress | None = None

    def check(self) -> None:
        """Do nothing: the kernel holds the lock."""

    def record(self, progress: CanaryProgress | None) -> None:
        """Do nothing: a local endpoint is switched at once."""


@dataclass(frozen=True)
class LocalEndpoints:
    """Endpoints that are processes of this machine.

    Attributes:
        workspace: Where state files and logs are stored.
    """

    workspace: Workspace

    @contextmanager
    def lock(self, line: str) -> Iterator[EndpointLock]:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.lock`."""
        with exclusive(self.workspace.endpoints / f".{line}.lock"):
            yield LocalLock()

    def status(self, line: str) -> LocalEndpoint | None:
        """Return the line's endpoint, or ``None`` if its process is not running."""
        return local_process.status(self.workspace, line)

    def deploy(
        self,
        line: LineConfig,
        release: Release,
        directory: Path,
        *,
        trial: Trial,
        lock: EndpointLock,
        approval: Approval | None = None,
    ) -> Deployed:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.deploy`; there are no canary steps here."""
        present, port = self.status(line.line), line.serving.port
        if present is not None and serves(present, release.digest, release.version, port):
            self.sweep(line.line)
            return Deployed(present)
        candidate = self.start_candidate(line.line, directory, release.version, port=port)
        try:
            trial(candidate.endpoint)
            return Deployed(self.switch(candidate))
        except BaseException:
            if self.status(line.line) != candidate.endpoint:
                self.discard(candidate)
            raise

    def document(self, line: LineConfig, release: Release) -> dict[str, Any]:
        """Return the InferenceService of a line that nothing serves yet, in ``CSFLOW_NAMESPACE`` or ``csflow``."""
        return document(line, DesiredService(release), os.environ.get("CSFLOW_NAMESPACE") or "csflow")

    def score(
        self, endpoint: Endpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False
    ) -> list[dict[str, Any]]:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.score`."""
        url = f"{endpoint.url}/v1/models/{endpoint.line}:predict"
        answers: list[dict[str, Any]] = []
        for body in request_bodies(images, heatmap=heatmap, boxes=boxes):
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            try:
                with local_process.opener().open(request, timeout=REQUEST_SECONDS) as response:
                    answers += json.load(response)["predictions"]
            except urllib.error.HTTPError as error:
                reason = error.read().decode(errors="replace")[:1000]
                raise DeployError(f"{url} answered {error.code}: {reason}") from error
            except (OSError, ValueError, KeyError) as error:
                raise DeployError(f"{url} cannot be reached: {error}. See {endpoint.log}.") from error
        return answers

    def stop(self, line: str) -> bool:
        """Stop the line's endpoint and whatever else is left of it; return True if it was running."""
        running = self.status(line) is not None
        state_file(self.workspace, line).unlink(missing_ok=True)
        self.sweep(line)
        return running

    def named_digests(self, line: str) -> set[str]:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.named_digests`."""
        return digests_in(*(file.read_text(errors="replace") for file in local_state_files(self.workspace, line)))

    def start_candidate(
        self, line: str, directory: Path, version: str, *, port: int = 0, deadline: float = READY_SECONDS
    ) -> Candidate:
        """Start a server for a detector and wait until it is ready; what serves the line is left alone.

        Args:
            line: The line.
            directory: A detector directory.
            version: Its registered version, shown in answers.
            port: REST port of the line; 0 for any free one. While the line's present server holds it, the
                candidate is tried on another one.
            deadline: Seconds until it must be ready.

        Raises:
            DeployError: If the port is in use by something else, or the server ends or does not become ready; its
                last log lines are part of the message.
        """
        self.sweep(line)
        former = self.status(line)
        held = former is not None and former.port == port
        endpoint = launch(self.workspace, line, directory, version, 0 if held else port, deadline)
        return Candidate(endpoint, directory, port)

    def switch(self, candidate: Candidate) -> LocalEndpoint:
        """Let a candidate serve its line, then stop the server it replaces.

        With a fixed port that the former server holds, a second server is started on the same port first: both
        answer until the former one has finished its requests. (Only a connection opened in the very moment in
        which that one stops listening may be reset.)

        Raises:
            DeployError: If the candidate is no longer there; the former server then goes on serving.
        """
        endpoint = candidate.endpoint
        if not healthy(endpoint):
            raise DeployError(f"The new server of {endpoint.line} at {endpoint.url} is gone. See {endpoint.log}.")
        if candidate.port not in (0, endpoint.port):
            endpoint = launch(
                self.workspace,
                endpoint.line,
                candidate.directory,
                endpoint.version,
                candidate.port,
                READY_SECONDS,
                digest=endpoint.digest,
            )
        write_sealed_json(state_file(self.workspace, endpoint.line), asdict(endpoint))
        self.sweep(endpoint.line)
        return endpoint

    def discard(self, candidate: Candidate) -> None:
        """Stop a candidate that is not to serve."""
        local_process.end(self.workspace, candidate.endpoint)

    def sweep(self, line: str) -> None:
        """Stop the line's processes that do not serve it: replaced ones, and candidates of a crashed promotion."""
        serving = local_process.read_state(state_file(self.workspace, line))
        for record in sorted(local_process.records_of(self.workspace, line).glob("*.json")):
            endpoint = local_process.read_state(record)
            if endpoint is None:
                record.unlink(missing_ok=True)
            elif endpoint != serving:
                local_process.end(self.workspace, endpoint)
        local_process.end_unrecorded(self.workspace, line, serving)


def serves(endpoint: LocalEndpoint, digest: str, version: str, port: int = 0) -> bool:
    """Return True if an endpoint answers with this detector under this version, on this port unless it is 0."""
    same = (endpoint.digest, endpoint.version) == (digest, version) and port in (0, endpoint.port)
    return same and healthy(endpoint)


def healthy(endpoint: LocalEndpoint) -> bool:
    """Return True if the endpoint's process is running and its model is ready."""
    return alive(endpoint) and ready(endpoint)
