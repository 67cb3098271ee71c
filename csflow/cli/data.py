"""``csflow data``: what a line's images are, and new ones for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.config import load_line
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

data_app = typer.Typer(help="See and extend the images of a line.", no_args_is_help=True)


@data_app.command("show")
def show(line: Annotated[str, typer.Argument(help="Line, or the path of its YAML file.")]) -> None:
    """Count a line's images at its revision, by split, role and type of defect.

    The data are checked out into the workspace first, and every file is verified.
    """
    from csflow.runs.checkout import materialise

    config = load_line(line)
    manifest, checked_out = materialise(config, Workspace.from_environment())
    print_counts(manifest, title=f"line {config.line}")
    typer.echo(f"revision {checked_out.git_rev}")
    typer.echo(f"DVC md5  {checked_out.data_md5}")
    typer.echo(f"digest   {manifest.digest}")
    typer.echo(f"images   {checked_out.root}")


@data_app.command("add")
def add(
    line: Annotated[str, typer.Argument(help="Line, or the path of its YAML file.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the new images; its sub-folders are searched too.")],
    split: Annotated[
        str, typer.Option(help="train or test; without it train for good images, test for defective ones.")
    ] = "",
    defect: Annotated[str, typer.Option(help="Type of defect; without it the images are good.")] = "",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks named like the images; defective pixels are not 0.")
    ] = None,
) -> None:
    """Bring new images into a line's data repository, for the next training.

    Refuses images that are there already (by content) and results that the data gate does not pass; nothing
    changes then.

    Records with DVC, pushes to its remote and commits the .dvc file; it does not run 'git push'.
    """
    from csflow.runs.add_images import Addition, add_images

    addition = Addition(folder, split or ("test" if defect else "train"), defect, masks)
    config = load_line(line)
    added = add_images(config, addition)
    print_counts(added.manifest, title=f"line {config.line}")
    typer.echo(f"added    {len(added.files)} files")
    typer.echo(f"commit   {added.commit}")
    typer.echo(f"DVC md5  {added.data_md5}")
    typer.echo(f"digest   {added.manifest.digest}")


def print_counts(manifest: Manifest, *, title: str) -> None:
    """Print how many images there are of each kind, and how many of them have a mask."""
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "role", "kind", "images", "masks", title=title)
    frame = manifest.frame.assign(kind=manifest.frame["defect"].where(manifest.frame["defect"] != "", "good"))
    for (split, role, kind), rows in frame.groupby(["split", "role", "kind"]):
        masks = int((rows["mask"] != "").sum())
        table.add_row(str(split), str(role), str(kind), str(len(rows)), str(masks) if masks else "")
    table.add_section()
    table.add_row("all", "", "", str(len(frame)), str(int((frame["mask"] != "").sum())))
    Console().print(table)
