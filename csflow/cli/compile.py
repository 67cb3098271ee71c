"""``csflow compile``: write a pipeline as a file for a Kubeflow Pipelines server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from csflow.cli.options import require_replaceable
from csflow.system.project import project_module


def compile_pipeline(
    graph: Annotated[Literal["retrain", "ablate"], typer.Argument(metavar="GRAPH", help="Which pipeline.")] = "retrain",
    output: Annotated[Path | None, typer.Option(help="File to write.", show_default="GRAPH.yaml")] = None,
    image: Annotated[str | None, typer.Option(help="Image that every step runs in.")] = None,
    line: Annotated[str | None, typer.Option(help="Line whose resources the steps request.")] = None,
) -> None:
    """Write a pipeline as IR YAML for a Kubeflow Pipelines server."""
    from csflow.config import load_line
    from csflow.system.files import write_atomic

    if image is not None:
        os.environ["CSFLOW_IMAGE"] = image  # the components read it when they are imported
    config = load_line(line) if line else None
    placement = project_module("pipelines.placement").placement_of(config)
    package = project_module("pipelines.package").compiled(graph, placement)
    target = output or Path(f"{graph}.yaml")
    require_replaceable(target, b"sdkVersion: kfp")
    write_atomic(target, package.text)
    typer.echo(f"Wrote {target}, version {package.version}")
