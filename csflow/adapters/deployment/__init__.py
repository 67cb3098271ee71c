"""A line's endpoint: a process of this machine, or an InferenceService of a cluster.

``CSFLOW_ENDPOINTS`` chooses: ``local`` (default) or ``kubernetes``. Reading, scoring and stopping are the same
for both. Changing is not: a local process is started beside the one that serves and switched at once; a cluster
shares requests between two detectors for a while, which ``csflow.release.canary`` leads.

======================== ==============================================================================
``endpoint.py``          what all endpoints have in common
``local.py``             processes on the loopback address
``inference_service.py`` the InferenceService document, and which deployment mode supports what
``kubernetes_api.py``    requests to the API server, and what its refusals mean
``turns.py``             one promotion of a line at a time: a locked file, or a Lease with the canary step
``cluster.py``           a line's InferenceService and its pods: observe, apply, ready, counts, score
======================== ==============================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from csflow.adapters.deployment import cluster, local
from csflow.adapters.deployment.cluster import ClusterEndpoint, Counts, Service
from csflow.adapters.deployment.endpoint import Endpoint
from csflow.adapters.deployment.inference_service import (
    Document,
    Observed,
    Release,
    Wanted,
    document,
    other_name,
)
from csflow.adapters.deployment.kubernetes_api import connect
from csflow.adapters.deployment.local import (
    Candidate,
    LocalEndpoint,
    discard,
    ensure,
    healthy,
    serves,
    start_candidate,
    sweep,
    switch,
)
from csflow.adapters.deployment.turns import LocalTurn, Progress, Turn, lease
from csflow.config import LineConfig
from csflow.errors import UsageError
from csflow.system.files import exclusive
from csflow.system.workspace import Workspace

__all__ = [
    "Candidate",
    "ClusterEndpoint",
    "Counts",
    "Document",
    "Endpoint",
    "LocalEndpoint",
    "Observed",
    "Progress",
    "Release",
    "Service",
    "Turn",
    "Wanted",
    "discard",
    "document",
    "ensure",
    "healthy",
    "named_digests",
    "on_cluster",
    "other_name",
    "score",
    "serves",
    "service",
    "start_candidate",
    "status",
    "stop",
    "sweep",
    "switch",
    "turn",
    "wanted_document",
]

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def on_cluster() -> bool:
    """Whether endpoints are InferenceServices (``CSFLOW_ENDPOINTS=kubernetes``).

    Raises:
        UsageError: If the variable says something else.
    """
    said = os.environ.get("CSFLOW_ENDPOINTS") or "local"
    if said not in ("local", "kubernetes"):
        raise UsageError(f"CSFLOW_ENDPOINTS is {said!r}, expected local or kubernetes.")
    return said == "kubernetes"


@contextmanager
def turn(workspace: Workspace, line: str) -> Iterator[Turn]:
    """Wait for one's turn to change a line's endpoint: a nightly retrain and a person must not do so at once.

    Raises:
        DeployError: If somebody on the cluster does not come to an end; or the cluster cannot be asked.
    """
    if on_cluster():
        with lease(connect(), line) as held:
            yield held
    else:
        with exclusive(workspace.endpoints / f".{line}.lock"):
            yield LocalTurn()


def wanted_document(line: LineConfig, release: Release) -> Document:
    """The InferenceService that serves a release of a line, as a promotion applies it when it is through.

    On a cluster it keeps the names of what runs there; without one (``CSFLOW_ENDPOINTS=local``) it is that of a line
    that nothing serves yet, in the namespace ``CSFLOW_NAMESPACE`` or else ``csflow``.

    Raises:
        DeployError: If KServe cannot read the release, or the cluster cannot be asked.
    """
    if not on_cluster():
        return document(line, Wanted(release), os.environ.get("CSFLOW_NAMESPACE") or "csflow")
    api = connect()
    seen = Service(api, line, LocalTurn()).observe()
    before = seen.wanted if seen else None
    if before is None:
        return document(line, Wanted(release), api.namespace)
    former = before.former if before.champion == release else before.champion
    return document(line, Wanted(release, former, name=before.name), api.namespace)


def service(line: LineConfig, turn: Turn) -> Service:
    """The line's InferenceService, to be changed while it is one's turn."""
    return Service(connect(), line, turn)


def status(workspace: Workspace, line: str) -> Endpoint | None:
    """What serves a line; ``None`` if nothing does.

    Raises:
        DeployError: If a cluster cannot be asked.
    """
    return cluster.status(line) if on_cluster() else local.status(workspace, line)


def named_digests(workspace: Workspace, line: str) -> set[str]:
    """Every detector digest that a line's endpoint names: served, tried beside, or to go back to.

    A local endpoint names what its state files say, whether its process runs or not.

    Raises:
        DeployError: If a cluster cannot be asked.
    """
    files = [workspace.endpoints / f"{line}.json", *(workspace.endpoints / f"{line}.processes").glob("*.json")]
    texts = [file.read_text() for file in files if file.exists()]
    if on_cluster():
        texts.append(json.dumps(cluster.raw(line), default=str))
    return {digest for text in texts for digest in _DIGEST.findall(text)}


def score(
    endpoint: Endpoint, images: Sequence[bytes], *, heatmap: bool = False, boxes: bool = False
) -> list[dict[str, Any]]:
    """Score encoded images through an endpoint, in the order given.

    Raises:
        DeployError: If it cannot be reached or refuses an image; its own reason is part of the message.
    """
    if isinstance(endpoint, ClusterEndpoint):
        return cluster.score(endpoint, images, heatmap=heatmap, boxes=boxes)
    return local.score(endpoint, images, heatmap=heatmap, boxes=boxes)


def stop(workspace: Workspace, line: str) -> bool:
    """Stop whatever serves a line; whether something did.

    Raises:
        DeployError: If a cluster refuses.
    """
    return cluster.delete(line) if on_cluster() else local.stop(workspace, line)
