"""Choose from the environment, once, the outside systems that a command, a step or a promotion uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csflow.adapters.deployment import endpoints_from_environment
from csflow.adapters.mlflow.registry import Registry
from csflow.adapters.mlflow.tracking import Tracker
from csflow.adapters.storage import Store
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.deployment.endpoints import Endpoints


@dataclass(frozen=True)
class Services:
    """The outside systems that a run of a line needs, created at an entry point and passed down.

    Attributes:
        workspace: Folder of everything csflow writes on this machine.
        tracker: MLflow runs.
        registry: MLflow registered models.
        endpoints: The endpoints that serve the lines.
        store: The object store that all machines share; ``None`` if there is none.
    """

    workspace: Workspace
    tracker: Tracker
    registry: Registry
    endpoints: Endpoints
    store: Store | None = None

    @classmethod
    def from_environment(cls) -> Services:
        """Choose the services that the environment names; nothing is contacted or created yet.

        The variables are ``CSFLOW_HOME``, ``MLFLOW_TRACKING_URI``, ``CSFLOW_ENDPOINTS`` and ``CSFLOW_STORE``.

        Raises:
            UsageError: If ``CSFLOW_ENDPOINTS`` names no kind of endpoint.
            ConfigError: If ``CSFLOW_STORE`` is not an address of a store.
        """
        return cls.of(Workspace.from_environment(), store=Store.from_environment())

    @classmethod
    def of(cls, workspace: Workspace, *, store: Store | None = None) -> Services:
        """Choose the services of a workspace.

        Args:
            workspace: Folder of everything csflow writes on this machine.
            store: The shared object store.

        Raises:
            UsageError: If ``CSFLOW_ENDPOINTS`` names no kind of endpoint.
        """
        return cls(
            workspace=workspace,
            tracker=Tracker(workspace),
            registry=Registry(workspace),
            endpoints=endpoints_from_environment(workspace),
            store=store,
        )
