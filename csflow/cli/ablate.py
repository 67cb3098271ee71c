"""``csflow ablate``: show in one table and one picture how much each part of the method contributes on a line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.errors import UsageError
from csflow.runs.ownership import OWNER, this_command
from csflow.runs.services import Services
from csflow.system.project import project_module
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from csflow.ablation.request import Request

GroupOption: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--group",
        "-g",
        help="Question (may be repeated): scales, blocks, shots, joint, width, standardization, training, "
        "score, map, backbone, image-size, detectors.",
    ),
]
SetOption: TypeAlias = Annotated[
    list[str], typer.Option("--set", help="KEY=VALUE for every variant (may be repeated), for instance flow.hidden=32.")
]
SeedsOption: TypeAlias = Annotated[str, typer.Option("--seeds", help="Seeds of every variant, for instance 0,1,2.")]
JointOption: TypeAlias = Annotated[str, typer.Option("--joint", help="Further lines of the group joint: LINE2,LINE3.")]
ShotsOption: TypeAlias = Annotated[str, typer.Option("--shots", help="Numbers of images of the group shots.")]
WidthsOption: TypeAlias = Annotated[str, typer.Option("--width", help="Widths of the group width.")]
BackbonesOption: TypeAlias = Annotated[
    list[str], typer.Option("--backbone", help="NAME or NAME:WEIGHTS of the group backbone (may be repeated).")
]
SizesOption: TypeAlias = Annotated[str, typer.Option("--image-size", help="Sizes of the group image-size: 256,512.")]


def ablate_lines(
    lines: Annotated[list[str], typer.Argument(metavar="LINE", help="Names of lines, or their YAML files.")],
    group: GroupOption = ["scales", "blocks"],  # noqa: B006 - typer copies it
    set_: SetOption = [],  # noqa: B006
    seeds: SeedsOption = "0",
    joint: JointOption = "",
    shots: ShotsOption = "16",
    width: WidthsOption = "128,256,512,1024",
    backbone: BackbonesOption = [],  # noqa: B006
    image_size: SizesOption = "",
    retime: Annotated[
        bool, typer.Option("--retime", help="Time every variant again; quality that was measured stays.")
    ] = False,
    runner: Annotated[
        Literal["process", "kfp"],
        typer.Option(help="Measure in this process, or as the pipeline that a cluster runs, with kfp's local runner."),
    ] = "process",
    as_json: JsonOption = False,
) -> None:
    """Change one thing at a time, measure quality and time, and compare with the figures of the paper.

    Every finished variant is kept: run the command again to resume an interrupted ablation. Variants that were measured
    for another ablation are reused. A variant that fails appears in the table with its error. Variants that were timed
    on another machine, or while other processes kept this one busy, are timed again.
    """
    if retime and runner == "kfp":
        raise UsageError("--retime is for --runner process: the pipeline times what has no time on this machine.")
    options = (group, set_, seeds, joint, shots, width, backbone, image_size)
    asked, services = [request(line, *options) for line in lines], Services.from_environment()
    if runner == "kfp":
        folders = project_module("pipelines.local_ablation").ablate_locally(asked, services.workspace)
    else:
        from csflow.ablation.run import run_ablation

        os.environ[OWNER] = this_command(services.workspace)
        folders = [run_ablation(each, services, retime=retime) for each in asked]
    if as_json:
        print_json([_as_json(folder, services.workspace) for folder in folders])
        return
    for folder in folders:
        show_ablation(folder, services.workspace)


def request(
    line: str,
    group: list[str],
    set_: list[str],
    seeds: str,
    joint: str,
    shots: str,
    width: str,
    backbone: list[str],
    image_size: str,
) -> Request:
    """Make the request that the options describe.

    Raises:
        ConfigError: If a line is unknown or an option is wrong.
    """
    from csflow.ablation.request import parse_overrides, parse_request
    from csflow.config import load_line

    return parse_request(
        {
            "line": load_line(line).model_dump(mode="json"),
            "groups": group,
            "seeds": _numbers(seeds),
            "overrides": parse_overrides(set_),
            "shots": _numbers(shots),
            "widths": _numbers(width),
            "backbones": backbone,
            "image_sizes": _numbers(image_size),
            "joined": [load_line(name).model_dump(mode="json") for name in _parts(joint)],
        }
    )


def show_ablation(folder: Path, workspace: Workspace) -> None:
    """Print the tables of an ablation and the folder that contains them."""
    from csflow.ablation.collect import read_results
    from csflow.ablation.summaries import by_group
    from csflow.ablation.table import NOTES, brief_table, failures
    from csflow.system.tables import print_line, print_table

    _, summaries = read_results(folder, workspace)
    for group, same in by_group(summaries).items():
        headers, *rows = brief_table(same)
        print_table(headers, rows, title=group)
        for text in failures(same):
            print_line(f"Broken: {text}", style="red")
    for note in NOTES[:-1]:
        print_line(note, style="dim")
    typer.echo(f"Tables, plot and one file per row: {folder}")


def _as_json(folder: Path, workspace: Workspace) -> dict[str, object]:
    from csflow.ablation.collect import read_results

    _, summaries = read_results(folder, workspace)
    rows = [row.model_dump(mode="json", exclude={"config", "test_scores"}) for each in summaries for row in each.rows]
    return {"folder": str(folder), "rows": rows}


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int | str]:
    """Split numbers at commas; a text that is not a number is kept, so that the check of the request can name it."""
    return [int(part) if part.isdecimal() else part for part in _parts(text)]
