"""Run a pipeline on this machine with kfp's local runner: a subprocess or container per step, a log file per run.

The runner's own output is long and goes to a file. What the steps say to people (lines marked through
``CSFLOW_MARK``) is shown as it arrives, and the message of a failing step is shown last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from csflow.config import LineConfig, lines_folder, parse_line_json
from csflow.errors import CsflowError, StoppedError
from csflow.runs.context import ERROR_FILE, RunContext
from csflow.runs.ownership import OWNER, this_command
from csflow.runs.services import Services
from csflow.system.files import cannot_write, sweep
from csflow.system.locks import held
from csflow.system.process_family import GRACE_SECONDS, Family, guarded
from csflow.system.processes import STOP_SIGNALS, handled_by
from csflow.system.progress import MARK, Relay
from csflow.system.project import PROJECT, require_project
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from kfp.local import DockerRunner, SubprocessRunner

_MARK_VALUE = "csflow>> "

Runner = Literal["subprocess", "docker"]
"""How the steps run: as processes in this environment, or each in a container of the image csflow-train."""


LEFTOVERS = ("kfp", "endpoints", "tmp")
"""Subfolders of a run's folder that nobody needs once it has ended: what is kept is stored elsewhere."""


class StepError(CsflowError):
    """A step failed; carries the step's own message and exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class LocalRun:
    """The result of a finished local run."""

    context: RunContext
    outcome: str
    log: Path


def run_locally(
    line: LineConfig, *, force: bool, services: Services, runner: Runner = "subprocess", wait: bool = True
) -> LocalRun:
    """Run the retraining pipeline of one line and wait for it.

    One command at a time runs a line in a workspace; ``wait`` says if a second one waits or is refused.

    Raises:
        LockedError: If another command runs the line and ``wait`` is False.
        StoppedError: After SIGTERM, SIGINT or SIGHUP.
        UsageError: If the steps are to run in containers and there is no Docker engine, or no image for them.
        StepError: With the failed step's own message.
        DeployError: If the champion cannot be served on this machine after a run in containers.
    """
    if runner == "docker":
        from pipelines.containers import check_engine

        check_engine()
    workspace = services.workspace
    with held(workspace.runs / f".{line.line}.lock", f"line {line.line}", wait=wait) as lock:
        tidy(workspace, line.line)
        root = new_folder(workspace, line.line)
        graph = ["pipelines.local", _configuration(line, runner), json.dumps(force), str(root), runner]
        with nothing_left(root, runner):
            log = run_child(graph, root, workspace, lock=lock)
            result = json.loads((root / "result.json").read_text())
            (context,) = root.glob("kfp/*/ingest/context")
            run = LocalRun(RunContext.load(context), result["outcome"], log)
            if runner == "docker" and endpoints_are_local():
                _serve_here(line, run.context, context.with_name("manifest"), services)
        return run


def endpoints_are_local() -> bool:
    """Return True if endpoints are processes of this machine and not of a cluster."""
    return os.environ.get("CSFLOW_ENDPOINTS", "local") == "local"


def _configuration(line: LineConfig, runner: Runner) -> str:
    """Return the line as JSON; for containers with any free port, because its own may be in use outside."""
    if runner == "docker" and endpoints_are_local():
        line = line.model_copy(update={"serving": line.serving.model_copy(update={"port": 0})})
    return line.model_dump_json()


def _serve_here(line: LineConfig, context: RunContext, manifest: Path, services: Services) -> None:
    """Serve the champion on this machine, because its trial endpoint ended with the container of its step."""
    from csflow.release import promotion
    from csflow.release.deployment import sample_images
    from csflow.runs.context import load_manifest

    done = promotion.reconcile(services, line, sample_images(load_manifest(context, manifest)))
    print(f"  serve: {done.reason}{f', at {done.endpoint.url}' if done.endpoint else ''}", file=sys.stderr, flush=True)


@contextmanager
def nothing_left(root: Path, runner: Runner = "subprocess") -> Iterator[None]:
    """Remove, after the block, a run's remaining containers and what its steps passed on; log and error stay."""
    try:
        yield
    finally:
        if runner == "docker":
            from pipelines.containers import remove_all

            remove_all(root)
        _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    for name in LEFTOVERS:
        shutil.rmtree(root / name, ignore_errors=True)


def tidy(workspace: Workspace, name: str) -> None:
    """Remove what killed runs left behind; called while the lock of ``name`` is held, so that none of its runs lives.

    Args:
        workspace: The workspace.
        name: The line, as it begins the names of its runs' folders.
    """
    for root in workspace.runs.glob(f"{name}-*"):
        ours = re.fullmatch(rf"{re.escape(name)}-\d{{8}}-\d{{6}}-\d+", root.name)
        if ours and any((root / each).exists() for each in LEFTOVERS):
            # Only runs in containers have endpoints of their own.
            with nothing_left(root, "docker" if (root / "endpoints").exists() else "subprocess"):
                pass
    own = (workspace.data / name, workspace.detectors / name, workspace.endpoints)
    for folder in (workspace.root, workspace.runs, workspace.models, *own, *workspace.features.glob("*/??")):
        sweep(folder)


def new_folder(workspace: Workspace, name: str) -> Path:
    """Create an empty folder for the files of a local run."""
    root = workspace.runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    root.mkdir(parents=True)
    return root


def run_child(arguments: Sequence[str], root: Path, workspace: Workspace, *, lock: int | None = None) -> Path:
    """Run a graph in its own process: ``python -m`` with the arguments.

    Args:
        arguments: Module and arguments.
        root: Folder of the run.
        workspace: The workspace.
        lock: Descriptor of a lock that lasts until the graph has ended, even if this process is killed.

    Returns:
        The log file with all that it printed.

    Raises:
        StoppedError: After SIGTERM, SIGINT or SIGHUP.
        StepError: With the failed step's own message.
    """
    log, project, scratch = root / "run.log", str(require_project()), (root / "tmp").absolute()
    # What a killed step leaves behind is then found with the run.
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {
        "CSFLOW_HOME": str(workspace.root.absolute()),
        "CSFLOW_LINES": str(lines_folder().absolute()),
        PROJECT: project,
        "PYTHONPATH": os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")])),
        MARK: _MARK_VALUE,
        ERROR_FILE: str(root / "error.json"),
        OWNER: this_command(workspace),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
    }
    code = _stream([sys.executable, "-m", *arguments], environment, log, () if lock is None else (lock,))
    if code != 0:
        raise _step_error(root / "error.json", log)
    return log


def _stream(command: list[str], environment: dict[str, str], log: Path, descriptors: Collection[int]) -> int:
    """Run ``command``, log all that it prints, show the marked lines, and return its exit code.

    A signal is passed on to all processes of the run, which have :data:`GRACE_SECONDS` to end, so that a training can
    write its checkpoint; a second one kills them. None of them outlives this function or this process.

    Raises:
        StoppedError: After a signal.
    """
    with (
        guarded() as family,
        log.open("w") as file,
        Relay() as progress,
        _passed_on(family) as received,
        subprocess.Popen(
            command,
            env=environment | family.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=descriptors,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for text in child.stdout:
                file.write(text)
                file.flush()
                _, mark, message = text.partition(_MARK_VALUE)
                if mark:
                    progress.show(message.rstrip("\n"))
        except BaseException as error:
            family.end()
            if isinstance(error, OSError):
                raise cannot_write(log, error) from error
            raise
    if received:
        raise StoppedError(received[0], f"What is finished is kept: the same command goes on from there. Log: {log}")
    return child.returncode


@contextmanager
def _passed_on(family: Family) -> Iterator[Sequence[int]]:
    """Ask the family to end when this process is asked to, and kill it at a second signal or when it takes too long.

    Yields:
        The numbers of the signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    reaper = threading.Timer(GRACE_SECONDS, family.kill)
    reaper.daemon = True

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            family.kill()
            return
        # Not through sys.stderr, in whose lock the signal may have come.
        os.write(2, f"\n{signal.Signals(number).name}: the step is asked to stop. Another signal kills it.\n".encode())
        reaper.start()
        family.ask()

    try:
        with handled_by(pass_on, (*STOP_SIGNALS, signal.SIGINT)):
            yield received
    finally:
        reaper.cancel()


def _step_error(error_file: Path, log: Path) -> StepError:
    if not error_file.exists():
        tail = "\n".join(log.read_text().splitlines()[-15:])
        return StepError(f"The pipeline stopped without a step's message. End of {log}:\n{tail}")
    failure = json.loads(error_file.read_text())
    return StepError(f"Step {failure['step']} failed. Log: {log}\n{failure['message']}", failure["exit_code"])


def _main(line: str, force: str, root: str, runner: Runner) -> None:
    """Run the graph through kfp, as the child process."""
    if runner == "docker":
        from pipelines.containers import followed

        with followed(Path(root)):
            _run_graph(line, force, Path(root), runner)
    else:
        from pipelines import step_processes

        with step_processes.followed():
            _run_graph(line, force, Path(root), runner)


def _run_graph(line: str, force: str, root: Path, runner: Runner) -> None:
    from kfp import local

    from pipelines.retrain import retrain

    # kfp offers its steps a working folder, which ours do not use.
    (root / "kfp" / "workspace").mkdir(parents=True)
    local.init(
        _kfp_runner(line, root, runner), pipeline_root=str(root / "kfp"), workspace_root=str(root / "kfp" / "workspace")
    )
    task = retrain(line=line, force=json.loads(force))
    (root / "result.json").write_text(json.dumps({"outcome": task.output}))


def _kfp_runner(line: str, root: Path, runner: Runner) -> DockerRunner | SubprocessRunner:
    if runner == "docker":
        from pipelines import containers

        return containers.runner(parse_line_json(line), Workspace.from_environment(), root)
    from kfp import local

    return local.SubprocessRunner(use_venv=False)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3], "docker" if sys.argv[4] == "docker" else "subprocess")
