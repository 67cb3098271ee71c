"""Run an ablation on this machine with kfp's local runner, as :mod:`pipelines.local` runs a retraining."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from csflow.ablation.plan import newest_ablation
from csflow.ablation.request import Request
from csflow.system.workspace import Workspace
from pipelines.local import new_folder, run_child


def ablate_locally(requests: list[Request], workspace: Workspace) -> list[Path]:
    """Ablate one line or several and wait.

    The local runner knows no limit of how much it runs at once; the step that measures lets one in at a time.

    Returns:
        The folder of each ablation.

    Raises:
        StepError: With the failed step's own message.
    """
    root = new_folder(workspace, f"ablate-{requests[0].line.line}")
    asked = [request.model_dump_json() for request in requests]
    run_child(["pipelines.local_ablation", json.dumps(asked), str(root)], root, workspace)
    shutil.rmtree(root / "kfp")
    return [newest_ablation(request.line.line, workspace) for request in requests]


def _main(requests: str, root: str) -> None:
    """Child process: run the graph through kfp."""
    from kfp import local

    from pipelines.ablate import ablation

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(root) / "kfp"))
    ablation(requests=json.loads(requests))


if __name__ == "__main__":
    _main(*sys.argv[1:])
