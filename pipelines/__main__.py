"""``python -m pipelines``: compile the graph, run it here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from csflow.cli import run_app
from csflow.config import load_line
from csflow.workspace import Workspace

app = typer.Typer(help="The retraining pipeline of a product line: compile it or run it.", no_args_is_help=True)


@app.command()
def run(
    line: Annotated[str, typer.Argument(help="Name of a line, or the path of its YAML file.")],
    force: Annotated[bool, typer.Option(help="Train again from another seed even if nothing changed.")] = False,
) -> None:
    """Run the whole pipeline on this machine and print what came out."""
    from csflow.steps.summary import render, summarise, write_summary
    from pipelines.local import run_locally

    config = load_line(line)
    workspace = Workspace.from_environment()
    finished = run_locally(config, force=force, workspace=workspace)
    summary = summarise(finished.context, finished.outcome, workspace)
    write_summary(summary, workspace)
    render(summary, workspace)


@app.command()
def demo(
    line: Annotated[str, typer.Argument(help="Name of a demo line.")] = "demo-texture",
    force: Annotated[bool, typer.Option(help="Train again from another seed even if nothing changed.")] = False,
) -> None:
    """Run the pipeline, score good and defective images over HTTP, stop the endpoint, show it all."""
    from pipelines.demo import run_demo

    run_demo(load_line(line), force=force, workspace=Workspace.from_environment())


@app.command("compile")
def compile_pipeline(
    output: Annotated[Path, typer.Option(help="Where to write the IR YAML.")] = Path("retrain.yaml"),
    image: Annotated[str | None, typer.Option(help="Image that every step runs in.")] = None,
) -> None:
    """Write the pipeline as IR YAML for a Kubeflow Pipelines server."""
    if image is not None:
        # Components read their image when they are defined, which is at import.
        os.environ["CSFLOW_IMAGE"] = image
    from kfp import compiler

    from pipelines.retrain import retrain

    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(retrain, package_path=str(output))
    typer.echo(f"Wrote {output}")


if __name__ == "__main__":
    run_app(app)
