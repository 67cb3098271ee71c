"""Run the steps of a graph in containers, through kfp's Docker runner.

Each step gets the environment and the folders of :mod:`pipelines.mounts`, the calling user, the host's network, a
root file system it cannot write to and a ``/tmp`` in memory. All containers of a run carry its folder as a label,
by which they are stopped with the run.
"""

from __future__ import annotations

import codecs
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from csflow.config import LineConfig
from csflow.errors import UsageError
from csflow.system.workspace import Workspace
from pipelines.mounts import passed_environment, places

if TYPE_CHECKING:
    from docker import DockerClient  # type: ignore[import-untyped]
    from docker.models.containers import Container  # type: ignore[import-untyped]
    from kfp.local import DockerRunner

LABEL = "csflow.run"
GRACE_SECONDS = 60.0
"""How long a step may take to end after it was asked to."""

_TERMINATED = 128 + signal.SIGTERM
_stopping = threading.Event()


def check_engine() -> str:
    """Check, before anything runs, that there is a Docker engine and that it has the image of the steps.

    Returns:
        The name of the image.

    Raises:
        UsageError: If either is missing.
    """
    import docker

    from components.image import BASE_IMAGE

    try:
        with closing(docker.from_env()) as client:
            client.images.get(BASE_IMAGE)
    except docker.errors.ImageNotFound as error:
        raise UsageError(
            f"The Docker engine has no image {BASE_IMAGE}. Build it with 'make images', or set CSFLOW_IMAGE to one it "
            "has."
        ) from error
    except (docker.errors.DockerException, OSError) as error:
        raise UsageError(
            f"No Docker engine answers ({error}). Start one or set DOCKER_HOST, and build the image of the steps with "
            "'make images'; or run without --runner docker."
        ) from error
    return BASE_IMAGE


def runner(line: LineConfig, workspace: Workspace, root: Path) -> DockerRunner:
    """Make the kfp runner for the steps of one run."""
    import docker
    from kfp.local import DockerRunner

    environment = passed_environment(os.environ)
    with closing(docker.from_env()) as client:
        engine = client.info()
    return DockerRunner(
        mounts=[
            docker.types.Mount(str(place.target), str(place.source), type="bind", read_only=not place.writable)
            for place in places(line, workspace, root, environment)
        ],
        environment=environment,
        labels={LABEL: str(root)},
        device_requests=accelerators(engine),
        **confinement(engine),
    )


def confinement(engine: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that run a step as the calling user, on the host's network, with a read-only root."""
    # For an engine that runs as the calling user itself (rootless), that user has the id 0.
    rootless = any("rootless" in option for option in engine.get("SecurityOptions") or ())
    return {
        "user": "0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        "group_add": [] if rootless else [str(group) for group in os.getgroups()],
        "network_mode": "host",
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "shm_size": "1g",
        "security_opt": ["no-new-privileges"],
    }


def accelerators(engine: dict[str, Any]) -> list[Any]:
    """Return a request for all GPUs if the engine supports it, because local runs use all that the machine has."""
    import docker

    if "nvidia" not in engine.get("Runtimes", {}):
        return []
    return [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]


@contextmanager
def followed(root: Path) -> Iterator[None]:
    """Let kfp run its steps through :func:`run_step`, and end them when this process is asked to end."""
    from kfp.local import docker_task_handler

    original = docker_task_handler.run_docker_container
    former = signal.signal(signal.SIGTERM, lambda number, frame: _stop(root, number, frame))
    # kfp lets the engine remove a container that has ended; if it is gone before kfp reads its exit status, kfp takes
    # the step for a success. A failed step must never count as one.
    docker_task_handler.run_docker_container = run_step
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = original
        signal.signal(signal.SIGTERM, former)


def run_step(client: DockerClient, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """Run a container, print its output line by line, remove it, and return its exit status."""
    if _stopping.is_set():
        return _TERMINATED
    container = client.containers.run(image, command, detach=True, volumes=volumes, **arguments)
    try:
        for line in _lines(container):
            print(line, flush=True)
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def _lines(container: Container) -> Iterator[str]:
    """Yield the lines that a container prints until it ends."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun = ""
    for chunk in _output(container):
        *lines, begun = (begun + decoder.decode(chunk)).split("\n")
        yield from lines
    if begun:
        yield begun


def _output(container: Container) -> Iterator[bytes]:
    """Yield the output as it arrives, then the rest, which was missed while following the log."""
    seen = 0
    for chunk in container.logs(stream=True, follow=True):
        seen += len(chunk)
        yield chunk
    container.wait()
    if rest := container.logs()[seen:]:
        yield rest


def _stop(root: Path, _number: int, _frame: FrameType | None) -> None:
    """Ask the steps of the run to end, and kill them if they do not; the run then ends because its step has ended."""
    _stopping.set()
    with _containers(root) as containers:
        for container in containers:
            terminate(container)
    reaper = threading.Timer(GRACE_SECONDS, remove_all, [root])
    reaper.daemon = True
    reaper.start()


def terminate(container: Container) -> None:
    """Send SIGTERM to every process in a container but the first, a shell of kfp's that would not pass it on."""
    from docker.errors import APIError  # type: ignore[import-untyped]

    try:
        container.exec_run(["sh", "-c", "kill -TERM -1"])
    except APIError:  # not started yet
        with suppress(APIError):
            container.kill()


def remove_all(root: Path) -> None:
    """Remove the remaining containers of a run, running or not; do nothing if the engine does not answer."""
    from docker.errors import DockerException

    with suppress(DockerException, OSError), _containers(root) as containers:
        for container in containers:
            with suppress(DockerException):
                container.remove(force=True)


@contextmanager
def _containers(root: Path) -> Iterator[list[Container]]:
    import docker

    with closing(docker.from_env()) as client:
        yield client.containers.list(all=True, filters={"label": f"{LABEL}={root}"})
