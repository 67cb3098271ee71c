"""Deploy detectors to a line's endpoint: a process of this machine, or an InferenceService of a cluster.

======================== ==============================================================================
``endpoints.py``         the interface of all endpoints, and what it passes around
``local.py``             endpoints that are processes on the loopback address
``local_process.py``     starting, watching and stopping one such process
``cluster.py``           endpoints that are InferenceServices
``service.py``           one line's InferenceService: observe, apply, readiness, request counts
``canary.py``            replaces a detector by the next in canary steps
``pods.py``              state and counters of the pods that serve
``inference_service.py`` the InferenceService document, and which deployment mode supports what
``lease.py``             the lock of a line on a cluster, with the canary step
``kubernetes_api.py``    requests to the API server, and what its refusals mean
======================== ==============================================================================
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from csflow.errors import UsageError

if TYPE_CHECKING:
    from csflow.adapters.deployment.endpoints import Endpoints
    from csflow.system.workspace import Workspace


def endpoints_from_environment(workspace: Workspace) -> Endpoints:
    """Choose where lines are served: ``CSFLOW_ENDPOINTS`` is ``local`` (default) or ``kubernetes``.

    Raises:
        UsageError: If the variable says something else.
    """
    chosen = os.environ.get("CSFLOW_ENDPOINTS") or "local"
    if chosen == "local":
        from csflow.adapters.deployment.local import LocalEndpoints

        return LocalEndpoints(workspace)
    if chosen == "kubernetes":
        from csflow.adapters.deployment.cluster import ClusterEndpoints

        return ClusterEndpoints(workspace)
    raise UsageError(f"CSFLOW_ENDPOINTS is {chosen!r}, expected local or kubernetes.")
