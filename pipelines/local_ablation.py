"""Run an ablation on this machine with kfp's local runner, as :mod:`pipelines.local` runs a retraining."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from csflow.ablation.plan import newest_ablation
from csflow.ablation.request import Request
from csflow.system.locks import held
from csflow.system.workspace import Workspace
from pipelines.local import new_folder, nothing_left, run_child, tidy


def ablate_locally(requests: list[Request], workspace: Workspace) -> list[Path]:
    """Ablate one or several lines and wait.

    The local runner does not limit how many tasks run at once, so the measuring step lets only one work at a time.

    Returns:
        The folder of each ablation.

    Raises:
        StepError: With the failed step's own message.
    """
    name, asked = f"ablate-{requests[0].line.line}", [request.model_dump_json() for request in requests]
    with held(workspace.runs / f".{name}.lock", f"the ablation of {requests[0].line.line}") as lock:
        tidy(workspace, name)
        root = new_folder(workspace, name)
        with nothing_left(root):
            run_child(["pipelines.local_ablation", json.dumps(asked), str(root)], root, workspace, lock=lock)
    return [newest_ablation(request.line.line, workspace) for request in requests]


def _main(requests: str, root: str) -> None:
    """Run the graph through kfp, as the child process."""
    from kfp import local

    from pipelines.ablate import ablation
    from pipelines.step_processes import followed

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(root) / "kfp"))
    with followed():
        ablation(requests=json.loads(requests))


if __name__ == "__main__":
    _main(*sys.argv[1:])
