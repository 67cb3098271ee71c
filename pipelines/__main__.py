"""``python -m pipelines``: run the graphs here, or on a cluster by hand and by the clock."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from csflow.cli import run_app
from csflow.cli.ablate import (
    BackbonesOption,
    GroupOption,
    JointOption,
    SeedsOption,
    SetOption,
    ShotsOption,
    SizesOption,
    WidthsOption,
)
from csflow.config import load_line
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from pipelines.commands import register

app = typer.Typer(
    help="The pipelines of a product line, retraining and ablation: run them here or on a cluster.",
    no_args_is_help=True,
)


@app.command()
def run(
    line: Annotated[str, typer.Argument(help="Name of a line, or the path of its YAML file.")],
    force: Annotated[bool, typer.Option(help="Train again from another seed even if nothing changed.")] = False,
    runner: Annotated[
        Literal["subprocess", "docker"],
        typer.Option(help="Steps run in this environment, or each in a container of the image csflow-train."),
    ] = "subprocess",
) -> None:
    """Run the whole pipeline on this machine and print what came out."""
    from csflow.runs.summary import print_summary, summarise_run, write_summary
    from pipelines.local import run_locally

    config = load_line(line)
    services = Services.from_environment()
    workspace = services.workspace
    finished = run_locally(config, force=force, services=services, runner=runner)
    summary = summarise_run(finished.context, finished.outcome, services)
    write_summary(summary, workspace)
    print_summary(summary, workspace)


@app.command()
def demo(
    line: Annotated[str, typer.Argument(help="Name of a demo line.")] = "demo-texture",
    force: Annotated[bool, typer.Option(help="Train again from another seed even if nothing changed.")] = False,
) -> None:
    """Run the pipeline, score good and defective images over HTTP, stop the endpoint, show it all."""
    from pipelines.demo import run_demo

    run_demo(load_line(line), force=force, services=Services.from_environment())


@app.command()
def ablate(
    lines: Annotated[list[str], typer.Argument(metavar="LINE...", help="Names of lines, or their YAML files.")],
    group: GroupOption = ["scales", "blocks"],  # noqa: B006 - typer copies it
    set_: SetOption = [],  # noqa: B006
    seeds: SeedsOption = "0",
    joint: JointOption = "",
    shots: ShotsOption = "16",
    width: WidthsOption = "128,256,512,1024",
    backbone: BackbonesOption = [],  # noqa: B006
    image_size: SizesOption = "",
) -> None:
    """Measure variants of lines, as `csflow ablate` does, through the pipeline runner."""
    from csflow.cli.ablate import request, show
    from pipelines.local_ablation import ablate_locally

    workspace = Workspace.from_environment()
    options = (group, set_, seeds, joint, shots, width, backbone, image_size)
    for folder in ablate_locally([request(line, *options) for line in lines], workspace):
        show(folder, workspace)


register(app)

if __name__ == "__main__":
    run_app(app)
