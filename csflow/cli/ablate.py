"""``csflow ablate``: what each part of the method brings on a line, as one table and one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from csflow.runs.services import Services
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from csflow.ablation.request import Request

GroupOption: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--group",
        "-g",
        help="Question to answer, several times: scales, blocks, shots, joint, width, standardization, training, "
        "score, map, backbone, image-size, detectors.",
    ),
]
SetOption: TypeAlias = Annotated[
    list[str], typer.Option("--set", help="KEY=VALUE for every variant, several times, for instance flow.hidden=32.")
]
SeedsOption: TypeAlias = Annotated[str, typer.Option("--seeds", help="Seeds of every variant, for instance 0,1,2.")]
JointOption: TypeAlias = Annotated[str, typer.Option("--joint", help="Further lines of the group joint: LINE2,LINE3.")]
ShotsOption: TypeAlias = Annotated[str, typer.Option("--shots", help="Numbers of images of the group shots.")]
WidthsOption: TypeAlias = Annotated[str, typer.Option("--width", help="Widths of the group width.")]
BackbonesOption: TypeAlias = Annotated[
    list[str], typer.Option("--backbone", help="NAME or NAME:WEIGHTS of the group backbone, several times.")
]
SizesOption: TypeAlias = Annotated[str, typer.Option("--image-size", help="Sizes of the group image-size: 256,512.")]


def ablate(
    line: Annotated[str, typer.Argument(help="Name of the line, or its YAML file.")],
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
) -> None:
    """Change one thing at a time, measure quality and time, and lay the paper's figures beside ours.

    Every finished variant is kept: an interrupted ablation goes on where it stopped when it is asked for again, and
    what was measured for another one is found. A variant that fails is a line of the table with its error. What was
    timed on another machine, or while others kept this one busy, is timed again.
    """
    from csflow.ablation.run import run_ablation

    asked = request(line, group, set_, seeds, joint, shots, width, backbone, image_size)
    services = Services.from_environment()
    show(run_ablation(asked, services, retime=retime), services.workspace)


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
    """What the options ask for.

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


def show(folder: Path, workspace: Workspace) -> None:
    """Print the tables of an ablation and where it lies."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from csflow.ablation.collect import read_results
    from csflow.ablation.summaries import by_group
    from csflow.ablation.table import NOTES, brief_table, failures

    console = Console()
    _, summaries = read_results(folder, workspace)
    for group, same in by_group(summaries).items():
        head, *lines = brief_table(same)
        shown = Table(*head, title=group, title_justify="left")
        for cells in lines:
            shown.add_row(*map(escape, cells))
        console.print(shown)
        for text in failures(same):
            console.print(f"Broken: {text}", markup=False, style="red")
    for note in NOTES[:-1]:
        console.print(note, markup=False, highlight=False, style="dim")
    typer.echo(f"Tables, plot and one file a row: {folder}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int | str]:
    """Numbers between commas; what is none is left for the check of the request to name."""
    return [int(part) if part.isdecimal() else part for part in _parts(text)]
