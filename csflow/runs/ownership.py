"""Mark MLflow runs with the command that they belong to, and close those whose command was killed."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.open_runs import OpenRuns
from csflow.system.processes import is_running, start_time
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.runs.services import Services
    from csflow.system.workspace import Workspace

OWNER = "CSFLOW_OWNER"
"""Environment variable with the command that a step belongs to, as JSON; only local commands set it."""

_TAG = "owner"


def this_command(workspace: Workspace) -> str:
    """Describe this process as the owner of the runs that it and its steps open."""
    return json.dumps(
        {
            "host": socket.gethostname(),
            "workspace": str(workspace.root.absolute()),
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
        }
    )


def owner_tags() -> dict[str, str | None]:
    """Return the tag that marks a run as one of the present command; ``None`` if no local command started the step."""
    return {_TAG: os.environ.get(OWNER)}


def close_killed_runs(services: Services, experiment: str) -> None:
    """Close the runs of an experiment whose command was killed as ``KILLED``, with what is known of them.

    A run stays as it is if its command may still be there: if it is running, if it belongs to another machine or
    workspace, or if nothing is known about it, as on a cluster.

    Args:
        services: The outside systems.
        experiment: Name of the experiment: a line, or its ablations.
    """
    open_runs = OpenRuns(services.workspace)
    here = json.loads(this_command(services.workspace))
    for run in open_runs.of(experiment):
        if run.tags.get(_TAG) == os.environ.get(OWNER):
            continue
        try:
            owner = json.loads(run.tags[_TAG])
            same = all(owner[name] == here[name] for name in ("host", "workspace"))
            if not same or is_running(int(owner["pid"]), owner["started"]):
                continue
        except (KeyError, TypeError, ValueError):
            continue
        done = [name.removeprefix("seconds_") for name in run.metrics if name.startswith("seconds_")]
        after = f"after {', '.join(done)}" if done else "before its first step had ended"
        open_runs.close(run.run_id, f"The command of this run was killed {after}.")
        say(f"an earlier run of {experiment} was killed {after}; it is closed as KILLED ({run.run_id})")
