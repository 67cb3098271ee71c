"""``csflow run``: run the whole pipeline of a line on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from csflow.cli.options import ForceOption, JsonOption, LineArgument, print_json
from csflow.runs.services import Services
from csflow.system.project import project_module


def run(
    line: LineArgument,
    force: ForceOption = False,
    runner: Annotated[
        Literal["subprocess", "docker"],
        typer.Option(help="Run the steps in this environment, or each in a container of the image csflow-train."),
    ] = "subprocess",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="If another command runs the line: wait for it, or be refused.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train, judge, register, promote and serve a line: the whole pipeline, on this machine.

    SIGTERM or Ctrl-C lets the step save what it has; a second one ends it at once. The same command then goes on where
    this one stopped.
    """
    from csflow.config import load_line
    from csflow.runs.summary import print_summary, summarise_run, write_summary

    config, services = load_line(line), Services.from_environment()
    local = project_module("pipelines.local")
    finished = local.run_locally(config, force=force, services=services, runner=runner, wait=wait)
    summary = summarise_run(finished.context, finished.outcome, services)
    write_summary(summary, services.workspace)
    if as_json:
        print_json(asdict(summary))
    else:
        print_summary(summary, services.workspace)
