"""``csflow import``: copy data sets and plain folders into the layout that csflow reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.data import counts_of, print_counts
from csflow.cli.options import JsonOption, print_json, require_paths
from csflow.errors import UsageError

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.runs.track import Importer

import_app = typer.Typer(
    help="Bring a data set or your own folders into the layout csflow reads (MVTec AD's).", no_args_is_help=True
)

Dest = Annotated[
    Path,
    typer.Argument(metavar="DEST", help="New folder for the images; with --track, the data repository that gets them."),
]
Track = Annotated[
    bool,
    typer.Option(
        "--track", help="Put the images under DVC in the repository DEST (made if needed), push and commit them."
    ),
]
Remote = Annotated[
    str | None,
    typer.Option(
        help="With --track, for a new repository: where images are pushed to, a folder or a URL like "
        "s3://bucket/prefix; without it the folder DEST-remote beside DEST."
    ),
]


@import_app.command("mtd")
def mtd(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder with MT_Free, MT_Blowhole, … and train_filenames.txt.")
    ],
    dest: Dest,
    track: Track = False,
    remote: Remote = None,
    as_json: JsonOption = False,
) -> None:
    """Import Magnetic Tile Defects with the split of CS-Flow's authors.

    The result has 761 good images for training, 191 good and 392 defective ones for testing, and masks.
    """
    require_paths(source)

    def bring(images: Path) -> list[str]:
        from csflow.data.importers import import_mtd

        import_mtd(source, images)
        return [""]

    _run(bring, dest, track, remote, "Magnetic Tile Defects", as_json=as_json)


@import_app.command("mvtec")
def mvtec(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Folder of class folders, one class folder, or an archive (.tar, .tar.xz, .zip)."
        ),
    ],
    dest: Dest,
    track: Track = False,
    remote: Remote = None,
    as_json: JsonOption = False,
) -> None:
    """Import MVTec AD, or any data in its layout: each class becomes a folder and a line of its name.

    Names are converted to lower case, with '-' instead of '_'. DEST may already hold other lines.
    """
    require_paths(source)

    def bring(images: Path) -> list[str]:
        from csflow.data.importers import import_mvtec

        return import_mvtec(source, images)

    _run(bring, dest, track, remote, f"MVTec AD layout: {source.name}", as_json=as_json)


@import_app.command("folder")
def folder(
    dest: Dest,
    good: Annotated[Path, typer.Option(help="Folder of good images.")],
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective images; sub-folders name the types of defect.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder laid out like --defective with masks; defective pixels are not 0.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the good images to test with, chosen by content.")
    ] = 0.2,
    track: Track = False,
    remote: Remote = None,
    as_json: JsonOption = False,
) -> None:
    """Import your own images from a folder of good and, if you have them, one of defective ones."""
    require_paths(good, defective, masks)

    def bring(images: Path) -> list[str]:
        from csflow.data.importers import import_folder

        import_folder(images, good=good, defective=defective, masks=masks, test_share=test_share)
        return [""]

    _run(bring, dest, track, remote, f"Images of {good.name}", as_json=as_json)


def _run(bring: Importer, dest: Path, track: bool, remote: str | None, message: str, *, as_json: bool) -> None:
    """Import images, then print what was imported and what to write into the line's YAML."""
    if remote and not track:
        raise UsageError("--remote needs --track: only a data repository has a remote.")
    if track:
        from csflow.runs.track import import_tracked

        paths, commit = import_tracked(bring, dest, remote, message)
    else:
        paths, commit = bring(dest), ""
    if as_json:
        lines = [
            {"path": path, "folder": str(dest / path), "counts": counts_of(_manifest(dest / path))} for path in paths
        ]
        print_json({"repo": str(dest.resolve()) if track else None, "commit": commit or None, "lines": lines})
        return
    for path in paths:
        print_counts(_manifest(dest / path), title=str(dest / path))
        if track:
            typer.echo(f"data:\n  repo: {dest.resolve()}\n  rev: HEAD\n  path: {path}\n")
    if track:
        typer.echo(
            f"Committed {commit[:12]} in {dest}. Put 'data:' into lines/NAME.yaml; a relative repo starts there."
        )


def _manifest(root: Path) -> Manifest:
    from csflow.config import RolesConfig
    from csflow.data.manifest import build_manifest

    return build_manifest(root, line=root.name, roles=RolesConfig())
