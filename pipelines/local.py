"""Run a pipeline on this machine with kfp's local runner: one subprocess a step, one log file a run.

The runner's own output is a wall of log. It goes to a file; what the steps say to people (lines marked
through ``CSFLOW_MARK``) is shown as it comes, and a failing step's own message comes last.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csflow.config import LineConfig
from csflow.errors import CsflowError
from csflow.processes import raised_on_sigterm
from csflow.progress import MARK
from csflow.steps.context import ERROR_FILE, RunContext
from csflow.workspace import Workspace

_MARK_VALUE = "»» "


class StepError(CsflowError):
    """A step failed; carries the step's own message and exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class LocalRun:
    """What a finished local run tells."""

    context: RunContext
    outcome: str
    log: Path


def run_locally(line: LineConfig, *, force: bool, workspace: Workspace) -> LocalRun:
    """Run the retraining pipeline of one line and wait for it.

    Raises:
        StepError: With the failed step's own message.
    """
    root = new_folder(workspace, line.line)
    log = run_child(["pipelines.local", line.model_dump_json(), json.dumps(force), str(root)], root, workspace)
    result = json.loads((root / "result.json").read_text())
    (context,) = root.glob("kfp/*/ingest/context")
    run = LocalRun(RunContext.load(context), result["outcome"], log)
    shutil.rmtree(root / "kfp")
    return run


def new_folder(workspace: Workspace, name: str) -> Path:
    """An empty folder for what a local run writes."""
    root = workspace.runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    root.mkdir(parents=True)
    return root


def run_child(arguments: Sequence[str], root: Path, workspace: Workspace) -> Path:
    """Run a graph in a process of its own: ``python -m`` with the arguments.

    Returns:
        The log of all it printed.

    Raises:
        StepError: With the failed step's own message.
    """
    log = root / "run.log"
    environment = os.environ | {
        "CSFLOW_HOME": str(workspace.root),
        MARK: _MARK_VALUE,
        ERROR_FILE: str(root / "error.json"),
        "PYTHONUNBUFFERED": "1",
        # Threads that spin while they wait starve whatever else runs here, such as the line's endpoint.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }
    code = _stream([sys.executable, "-m", *arguments], environment, log)
    if code != 0:
        raise _step_error(root / "error.json", log)
    return log


def _stream(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Run ``command``, log all it prints, show the marked lines; its exit code.

    Interrupted (Ctrl-C or SIGTERM), it passes SIGTERM on to all that the run started and waits, so that
    a training step can write its checkpoint.
    """
    with (
        log.open("w") as file,
        raised_on_sigterm(),
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for text in child.stdout:
                file.write(text)
                file.flush()
                _, mark, message = text.partition(_MARK_VALUE)
                if mark:
                    print(f"  {message}", end="", flush=True)
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            file.writelines(child.stdout)
            raise
    return child.returncode


def _step_error(error_file: Path, log: Path) -> StepError:
    if not error_file.exists():
        tail = "\n".join(log.read_text().splitlines()[-15:])
        return StepError(f"The pipeline stopped without a step's message. End of {log}:\n{tail}")
    failure = json.loads(error_file.read_text())
    return StepError(f"Step {failure['step']} failed. Log: {log}\n{failure['message']}", failure["exit_code"])


def _main(line: str, force: str, root: str) -> None:
    """Child process: run the graph through kfp."""
    from kfp import local

    from pipelines.retrain import retrain

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(root) / "kfp"))
    task = retrain(line=line, force=json.loads(force))
    (Path(root) / "result.json").write_text(json.dumps({"outcome": task.output}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
