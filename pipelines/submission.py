"""Submit runs to a cluster: choose a pipeline's parameters, start it, and wait for it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from csflow.config import LineConfig
from csflow.errors import UsageError
from pipelines.api import NoServerError
from pipelines.package import Package, compiled
from pipelines.placement import STORE, placement_of
from pipelines.server import FINISHED, Server, ServerRun

_LONGEST_SILENCE = 600.0


def package_of(line: LineConfig) -> Package:
    """Compile the retraining pipeline with the line's resources."""
    return compiled("retrain", placement_of(line))


def parameters_of(line: LineConfig, *, force: bool = False, shards: int | None = None) -> dict[str, Any]:
    """Return the parameters of the pipeline.

    The schedule is left out, because when a line runs does not change what it does.
    """
    plain = line.model_copy(update={"schedule": None})
    return {"line": plain.model_dump_json(), "force": force, "shards": shards or line.resources.shards}


def require_reachable(line: LineConfig) -> None:
    """Refuse folders of this machine, because a pod reaches only network addresses, its image and the store volume.

    Raises:
        UsageError: If the data repository or the weights are elsewhere.
    """
    from csflow.runs.data_folders import has_remote_repository

    repo, weights = line.data.repo, line.features.weights
    if not has_remote_repository(line) and not _on_volume(repo.removeprefix("file://")):
        raise UsageError(
            f"data.repo of {line.line} is {repo}, a folder of this machine, which no pod can read. Push the repository "
            "to a git server that the cluster reaches, its images to a DVC remote (dvc push), and give its URL, or put "
            f"both on the store volume, below {STORE}."
        )
    if weights not in ("hub", "package") and "://" not in weights and not _on_volume(weights):
        raise UsageError(
            f"features.weights of {line.line} is {weights}, a file of this machine, which no pod can read. Give an "
            f"s3:// address, or put it on the store volume, below {STORE}."
        )


def _on_volume(path: str) -> bool:
    place = PurePosixPath(path)
    return place.is_relative_to(STORE) and ".." not in place.parts


def submit_run(
    server: Server, line: LineConfig, *, force: bool = False, shards: int | None = None, account: str | None = None
) -> ServerRun:
    """Start a run of a line's retraining pipeline.

    Raises:
        UsageError: If pods cannot reach the line's data.
        ServerError: If the server does not answer or refuses.
    """
    require_reachable(line)
    parameters = parameters_of(line, force=force, shards=shards)
    version = server.version_of(package_of(line))
    name = f"csflow-{line.line}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    return server.start(line.line, name, version, parameters, account=account)


def wait(
    server: Server,
    run: ServerRun,
    *,
    say: Callable[[str], None],
    every: float = 10.0,
    patience: float = _LONGEST_SILENCE,
) -> ServerRun:
    """Wait until a run has ended, and report every change of its state.

    Args:
        server: The server of the run.
        run: The run, as :func:`submit_run` returned it.
        say: Called with each new state.
        every: Seconds between two requests.
        patience: Seconds for which the server may be unreachable; the run goes on meanwhile.

    Raises:
        ServerError: If the server refuses, or is unreachable for longer.
    """
    state, answered = "", time.monotonic()
    while True:
        try:
            run = server.read_run(run.id)
            answered = time.monotonic()
        except NoServerError:
            if time.monotonic() - answered > patience:
                raise
        if run.state != state:
            say(f"{run.name}: {run.state.lower()}")
            state = run.state
        if state in FINISHED:
            return run
        time.sleep(every)
