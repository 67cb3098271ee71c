"""``csflow demo``: run the pipeline of a demo line, then score parts over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.cli.options import ForceOption, JsonOption, print_json
from csflow.runs.services import Services
from csflow.system.project import project_module


def demo(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Name of a demo line.")] = "demo-texture",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline of a demo line, score good and defective parts over HTTP, and show it all."""
    from dataclasses import asdict

    from csflow.config import load_line
    from csflow.runs.summary import print_summary

    config, services = load_line(line), Services.from_environment()
    summary = project_module("pipelines.demo").run_demo(config, force=force, services=services)
    if as_json:
        print_json(asdict(summary))
    else:
        print_summary(summary, services.workspace)
