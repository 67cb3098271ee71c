"""Serve lines by the InferenceServices of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csflow.adapters.deployment.canary import Rollout
from csflow.adapters.deployment.endpoints import (
    Approval,
    Deployed,
    Endpoint,
    EndpointLock,
    Release,
    Trial,
    digests_in,
    local_state_files,
    request_bodies,
)
from csflow.adapters.deployment.inference_service import DesiredService, document, observed, selector
from csflow.adapters.deployment.kubernetes_api import INFERENCE_SERVICE, Document, KubernetesApi, connect
from csflow.adapters.deployment.lease import lease
from csflow.adapters.deployment.local import LocalLock
from csflow.adapters.deployment.pods import is_ready, rest_port
from csflow.adapters.deployment.service import ClusterEndpoint, LineService
from csflow.config import LineConfig
from csflow.errors import DeployError
from csflow.system.workspace import Workspace


@dataclass(frozen=True)
class ClusterEndpoints:
    """Endpoints that are InferenceServices of the cluster this process can reach.

    Attributes:
        workspace: Its state files name detectors that local processes served before.
    """

    workspace: Workspace

    @cached_property
    def _api(self) -> KubernetesApi:
        return connect()

    @contextmanager
    def lock(self, line: str) -> Iterator[EndpointLock]:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.lock`."""
        with lease(self._api, line) as held:
            yield held

    def status(self, line: str) -> ClusterEndpoint | None:
        """Return what answers for a line on the cluster; ``None`` if nothing does that csflow deployed.

        Raises:
            DeployError: If the cluster cannot be reached.
        """
        found = self._found(line)
        seen = observed(found) if found else None
        if seen is None or seen.wanted is None or not seen.url:
            return None
        champion, challenger = seen.wanted.champion, seen.wanted.challenger
        beside = f"version {challenger.version} at {seen.wanted.percent} %" if challenger else ""
        return ClusterEndpoint(line, seen.url, champion.digest, champion.version, self._api.namespace, beside)

    def service(self, line: LineConfig, lock: EndpointLock) -> LineService:
        """Return the line's InferenceService, to be changed while the lock is held."""
        return LineService(self._api, line, lock)

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
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.deploy`."""
        service = self.service(line, lock)
        note = Rollout(service, lock, line, release, trial, approval).run()
        return Deployed(service.endpoint(release), note)

    def document(self, line: LineConfig, release: Release) -> Document:
        """Return the InferenceService of a release; it keeps the names of what runs on the cluster.

        Raises:
            DeployError: If KServe cannot read the release, or the cluster cannot be reached.
        """
        seen = self.service(line, LocalLock()).observe()
        before = seen.wanted if seen else None
        if before is None:
            return document(line, DesiredService(release), self._api.namespace)
        former = before.former if before.champion == release else before.champion
        return document(line, DesiredService(release, former, name=before.name), self._api.namespace)

    def score(
        self, endpoint: Endpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False
    ) -> list[dict[str, Any]]:
        """Score encoded images with one of the endpoint's pods, in the given order.

        Raises:
            DeployError: If no pod is ready, or it refuses an image; its own reason is part of the message.
        """
        pods = self._api.pods(selector(endpoint.line, Release(endpoint.version, endpoint.digest, "")))
        pod = next((pod for pod in pods if is_ready(pod)), None)
        if pod is None:
            raise DeployError(f"No pod of {endpoint.line} version {endpoint.version} is ready. See {endpoint.log}.")
        answers: list[dict[str, Any]] = []
        for body in request_bodies(images, heatmap=heatmap, boxes=boxes):
            path = f"v1/models/{endpoint.line}:predict"
            answers += self._api.through_pod(pod["metadata"]["name"], rest_port(pod), path, body)["predictions"]
        return answers

    def stop(self, line: str) -> bool:
        """Delete what answers for a line on the cluster, unless csflow did not deploy it; True if there was one.

        Raises:
            DeployError: If the cluster refuses.
        """
        found = self._found(line)
        if found is None or observed(found).wanted is None:
            return False
        return self._api.delete(INFERENCE_SERVICE, line)

    def named_digests(self, line: str) -> set[str]:
        """See :meth:`csflow.adapters.deployment.endpoints.Endpoints.named_digests`."""
        local = [file.read_text(errors="replace") for file in local_state_files(self.workspace, line)]
        return digests_in(*local, json.dumps(self._found(line), default=str))

    def _found(self, line: str) -> Document | None:
        """Read the line's InferenceService from the cluster, whoever wrote it; return ``None`` if there is none."""
        return self._api.get(INFERENCE_SERVICE, line)
