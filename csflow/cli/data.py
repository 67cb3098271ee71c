"""``csflow data``: count a line's images, and add new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, LineArgument, print_json, require_paths
from csflow.config import load_line
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

data_app = typer.Typer(help="See and extend the images of a line.", no_args_is_help=True)


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
    as_json: JsonOption = False,
) -> None:
    """Add new images to a line's data repository, for the next training.

    Images that the line already has (by content) are refused, and so is a result that does not pass the data gate;
    nothing changes then.

    The images are recorded with DVC and pushed to its remote, and the .dvc file is committed. 'git push' is not run.
    """
    from csflow.runs.add_images import Addition, add_images

    addition = Addition(folder, split or ("test" if defect else "train"), defect, masks)
    require_paths(folder, masks)
    config = load_line(line)
    added = add_images(config, addition)
    about = {
        "added": f"{len(added.files)} files",
        "commit": added.commit,
        "DVC md5": added.data_md5,
        "digest": added.manifest.digest,
    }
    _print_data(added.manifest, config.line, about, as_json=as_json)


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
