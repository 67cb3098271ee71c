"""``csflow synthesize``: draw the demo lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synthesize(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder that gets one folder per line.")],
    line: Annotated[
        list[str] | None, typer.Option(help="demo-texture or demo-object; may be repeated.", show_default="both")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other pieces of the same products.")] = 0,
) -> None:
    """Draw the demo lines, good and defective images with masks, into DEST."""
    from csflow.synthetic import DEMO_LINES, draw_demo

    for folder in draw_demo(dest, lines=line or tuple(DEMO_LINES), seed=seed):
        images, masks = len(list(folder.glob("t*/*/*"))), len(list(folder.glob("ground_truth/*/*")))
        typer.echo(f"{folder}: {images} images, {masks} masks")
