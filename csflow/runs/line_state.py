"""Read the current state of a line from the outside systems: champion, hold, endpoint and last runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from csflow.errors import CsflowError, NotRegisteredError

if TYPE_CHECKING:
    from csflow.adapters.deployment.endpoints import Endpoint
    from csflow.adapters.mlflow.runs import Run
    from csflow.adapters.mlflow.versions import Version
    from csflow.runs.services import Services

Value = TypeVar("Value")


@dataclass(frozen=True)
class LineState:
    """The current state of a line according to registry, endpoint and tracker.

    Attributes:
        line: The product line.
        champion: The version that should be served; ``None`` if there is none.
        hold: What a person noted when rolling back; ``None`` if retrains may promote.
        endpoint: What serves the line; ``None`` if nothing does.
        last_run: The newest pipeline run; ``None`` if there is none or it was not requested.
        troubles: Why something could not be read, one message for each cause.
    """

    line: str
    champion: Version | None
    hold: Mapping[str, str] | None
    endpoint: Endpoint | None
    last_run: Run | None
    troubles: tuple[str, ...] = ()

    @property
    def serves_another(self) -> bool:
        """Tell if the endpoint serves a version that is not the champion."""
        return (
            self.endpoint is not None
            and self.champion is not None
            and self.endpoint.version != str(self.champion.version)
        )


def read_line_state(
    services: Services,
    line: str,
    *,
    last_run: bool = False,
    tolerate: type[CsflowError] | tuple[type[CsflowError], ...] = (),
) -> LineState:
    """Read the state of a line.

    Args:
        services: The outside systems.
        line: The product line.
        last_run: If True, read the newest pipeline run as well.
        tolerate: Errors that are listed in ``troubles`` instead of being raised; the part that could not be read is
            left empty.

    Raises:
        RegistryError: If the registry cannot be read, unless it is tolerated.
        DeployError: If a cluster cannot be reached, unless it is tolerated.
    """
    troubles: dict[str, None] = {}

    def tried(ask: Callable[[], Value]) -> Value | None:
        try:
            return ask()
        except NotRegisteredError:  # it is no trouble if a line never ran
            return None
        except tolerate as error:
            troubles[str(error)] = None
            return None

    champion = tried(lambda: services.registry.find_champion(line))
    hold = tried(lambda: services.registry.get_hold(line))
    runs = tried(lambda: services.tracker.list_runs(line, limit=1)) if last_run else None
    endpoint = tried(lambda: services.endpoints.status(line))
    return LineState(line, champion, hold, endpoint, runs[0] if runs else None, tuple(troubles))


def read_recent_runs(services: Services, line: str, *, limit: int) -> list[tuple[Run, Version | None]]:
    """Read the last runs of a line, newest first, each with the version it registered, if any.

    Args:
        services: The outside systems.
        line: The product line.
        limit: Largest number of runs.

    Raises:
        NotRegisteredError: If the line never ran here.
        RegistryError: If MLflow cannot be read.
    """
    runs = services.tracker.list_runs(line, limit=limit)
    try:
        versions = {version.run_id: version for version in services.registry.versions(line)}
    except NotRegisteredError:
        versions = {}
    return [(run, versions.get(run.run_id)) for run in runs]
