"""``csflow data``: count a line's images, add new ones, remove some, and repair what a crash left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, LineArgument, print_json, require_paths
from csflow.config import load_line
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.runs.change_images import Changed

data_app = typer.Typer(help="See and change the images of a line.", no_args_is_help=True)


@data_app.command("show")
def show_data(line: LineArgument, as_json: JsonOption = False) -> None:
    """Count a line's images at its revision, by split, role and type of defect.

    The data are checked out into the workspace first, and every file is verified.
    """
    from csflow.runs.checkout import materialise

    config = load_line(line)
    manifest, checked_out = materialise(config, Workspace.from_environment())
    about = {
        "revision": checked_out.git_rev,
        "DVC md5": checked_out.data_md5,
        "digest": manifest.digest,
        "images": str(checked_out.root),
    }
    _print_data(manifest, config.line, about, as_json=as_json)


@data_app.command("add")
def add_data(
    line: LineArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the new images; its sub-folders are searched too.")
    ],
    split: Annotated[
        str, typer.Option(help="train or test; without it train for good images, test for defective ones.")
    ] = "",
    defect: Annotated[str, typer.Option(help="Type of defect; without it the images are good.")] = "",
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks named like the images; defective pixels are not 0.")
    ] = None,
    skip_known: Annotated[
        bool, typer.Option("--skip-known", help="Leave out images that the line already has, instead of refusing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add new images to a line's data repository, for the next training.

    Images that the line already has (by content) are refused or left out, and a result that does not pass the data gate
    is refused; nothing changes then.

    The images are recorded with DVC and pushed to its remote, and the .dvc file is committed. 'git push' is not run.
    """
    from csflow.runs.add_images import Addition, add_images

    addition = Addition(folder, split or ("test" if defect else "train"), defect, masks)
    require_paths(folder, masks)
    config = load_line(line)
    _print_change("added", add_images(config, addition, skip_known=skip_known), config.line, as_json=as_json)


@data_app.command("remove")
def remove_data(
    line: LineArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Path in the line's folder, start of a SHA-256, or a file or folder of equal images."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Remove images, with their masks, from a line's data repository, for the next training.

    Earlier revisions keep them. A rest that does not pass the data gate is refused; nothing changes then. The change is
    recorded, pushed and committed like that of csflow data add.
    """
    from csflow.runs.remove_images import remove_images

    config = load_line(line)
    _print_change("removed", remove_images(config, images), config.line, as_json=as_json)


@data_app.command("repair")
def repair_data(
    line: LineArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Undo the change even if it could be finished.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Finish or undo a change of a line's images that was killed in the middle.

    A change whose files were in place and had passed the data gate is recorded, pushed and committed; any other is
    undone.
    """
    from csflow.runs.change_images import repair

    config = load_line(line)
    done = repair(config, undo=undo)
    if as_json:
        print_json({"line": config.line, "done": done})
    else:
        typer.echo(done)


def _print_change(what: str, done: Changed, line: str, *, as_json: bool) -> None:
    about = {
        what: f"{len(done.files)} files",
        "skipped": "; ".join(done.skipped),
        "commit": done.commit or "none: nothing has changed",
        "DVC md5": done.data_md5,
        "digest": done.manifest.digest,
    }
    _print_data(done.manifest, line, {name: text for name, text in about.items() if text}, as_json=as_json)


def _print_data(manifest: Manifest, line: str, about: dict[str, str], *, as_json: bool) -> None:
    from csflow.system.tables import print_facts

    if as_json:
        print_json({"line": line, **{key.replace(" ", "_").lower(): value for key, value in about.items()},
                    "counts": counts_of(manifest)})  # fmt: skip
        return
    print_counts(manifest, title=f"line {line}")
    print_facts(list(about.items()))


def counts_of(manifest: Manifest) -> list[dict[str, object]]:
    """Count the images of each kind, and how many of them have a mask."""
    frame = manifest.frame.assign(kind=manifest.frame["defect"].where(manifest.frame["defect"] != "", "good"))
    return [
        {"split": split, "role": role, "kind": kind, "images": len(rows), "masks": int((rows["mask"] != "").sum())}
        for (split, role, kind), rows in frame.groupby(["split", "role", "kind"])
    ]


def print_counts(manifest: Manifest, *, title: str) -> None:
    """Print how many images there are of each kind, and how many of them have a mask."""
    from csflow.system.tables import print_table

    counts = counts_of(manifest)
    rows = [(str(c["split"]), str(c["role"]), str(c["kind"]), str(c["images"]), str(c["masks"] or "")) for c in counts]
    masks = int((manifest.frame["mask"] != "").sum())
    rows.append(("all", "", "", str(len(manifest)), str(masks)))
    print_table(("split", "role", "kind", "images", "masks"), rows, title=title, sections=[len(rows) - 2])
