"""Make what all servers get: the images, a detector of equal weights for each, and the correct scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sidebyside.images import draw_images, find_images
from sidebyside.process import WorkerError

from servers.contenders import Contender, ours, plain
from servers.settings import Settings

KINDS = ("PNG", "JPEG")


def images(folder: Path, settings: Settings) -> None:
    """Find or draw the images and list them in a file."""
    if settings.folder:
        files = find_images(Path(settings.folder), settings.images)
    else:
        files = draw_images(folder / "images", settings.images, settings.seed, side=settings.side, kinds=KINDS)
    (folder / "images.json").write_text(json.dumps([str(path) for path in files]))


def scores(folder: Path, width: int, settings: Settings) -> None:
    """Make our detector of a width, its exported file and the correct scores of the images, computed by torch."""
    if (file := scores_file(folder, width)).exists():
        return
    more = {"images": json.loads((folder / "images.json").read_text()), "scores": str(file)}
    _make(ours(), folder, width, settings, export=str(plain().model(folder, width)), **more)


def scores_file(folder: Path, width: int) -> Path:
    """Return the file with the correct scores of a width."""
    return folder / f"scores-{width}.json"


def model(contender: Contender, folder: Path, width: int, settings: Settings) -> Path:
    """Return the detector directory of a server, or its ONNX file; that of an older checkout is made at the first call.

    Raises:
        WorkerError: If its checkout cannot make one.
    """
    path = contender.model(folder, width)
    if not path.exists():
        _make(contender, folder, width, settings)
    return path


def _make(contender: Contender, folder: Path, width: int, settings: Settings, **more: object) -> None:
    shape = {"size": settings.size, "width": width, "blocks": settings.blocks, "seed": settings.seed}
    files = {"directory": str(contender.model(folder, width)), "weights": str(folder / f"weights-{width}.pt")}
    ran = subprocess.run(
        [sys.executable, "-m", "servers.make_detector", json.dumps({**shape, **files, **more})],
        env=os.environ | contender.environment,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise WorkerError(f"{contender.name} could not make a detector:\n{ran.stderr[-2000:]}")
