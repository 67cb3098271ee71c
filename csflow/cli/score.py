"""``csflow score``: score image files without a pipeline or server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.errors import UsageError
from csflow.runs.services import Services
from csflow.system.progress import say, track

if TYPE_CHECKING:
    from PIL.Image import Image

    from csflow.detector.engine import Engine
    from csflow.detector.prediction import Prediction


def score(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="LINE (its champion), LINE@VERSION, or a detector directory.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the overlays.")] = Path("scores"),
    as_json: JsonOption = False,
) -> None:
    """Score images and write a heat-map overlay for each."""
    from csflow.data.overlay_files import overlay_paths, write_overlay
    from csflow.detector.engine import Engine
    from csflow.detector.heatmap import overlay
    from csflow.release.locate import locate_detector

    files = _image_files(images)
    paths = overlay_paths(files, out)
    engine = Engine.load(locate_detector(model, Services.from_environment()))
    calibration = engine.calibration
    rows = []
    scored = zip(paths, _predictions(engine, files), strict=True)
    for path, (file, image, prediction) in track(scored, total=len(files), label="score"):
        picture = overlay(image, prediction.anomaly_map, calibration.map_range, calibration.region_threshold)
        write_overlay(path, picture)
        rows.append(
            {
                "image": str(file),
                "score": prediction.score,
                "p_value": prediction.p_value,
                "decision": prediction.decision,
                "overlay": str(path),
            }
        )
    if as_json:
        print_json({"threshold": calibration.threshold, "scores": rows})
    else:
        _print(rows, calibration.statement)


def _predictions(engine: Engine, files: list[Path]) -> Iterator[tuple[Path, Image, Prediction]]:
    """Read and score a few images per core at a time, since all of them together might not fit into memory."""
    from csflow.data.images import read_image
    from csflow.detector.engine import CHUNK

    size = CHUNK * engine.threads
    for start in range(0, len(files), size):
        some = files[start : start + size]
        images = [read_image(file) for file in some]
        yield from zip(some, images, engine.predict(images), strict=True)


def _image_files(arguments: list[Path]) -> list[Path]:
    """List the images that the arguments name, each once; overlays of earlier calls are left out."""
    from csflow.data.overlay_files import is_overlay

    files: list[Path] = []
    for path in arguments:
        if path.is_dir():
            files += _images_below(path)
        elif not path.exists():
            raise UsageError(f"{path} does not exist.")
        elif is_overlay(path):
            raise UsageError(f"{path} is an overlay that csflow drew. Score the picture of the part instead.")
        else:
            files.append(path)
    once: dict[Path, Path] = {}
    for file in files:
        once.setdefault(file.absolute(), file)
    return list(once.values())


def _images_below(folder: Path) -> list[Path]:
    from csflow.data.manifest import is_image
    from csflow.data.overlay_files import is_overlay

    found = sorted(file for file in folder.rglob("*") if file.is_file() and is_image(file))
    images = [file for file in found if not is_overlay(file)]
    if len(images) < len(found):
        say(f"score: {len(found) - len(images)} overlays that csflow drew are left out of {folder}")
    if not images:
        raise UsageError(
            f"No images in {folder}. Expected image files (png, jpg, bmp, tif, webp) in it or in its folders."
        )
    return images


def _print(rows: list[dict[str, object]], statement: str) -> None:
    from csflow.system.tables import print_table

    cells = [
        (
            str(row["image"]),
            f"{row['score']:.4f}",
            "-" if row["p_value"] is None else f"{row['p_value']:.3f}",
            str(row["decision"] or "-"),
            str(row["overlay"]),
        )
        for row in rows
    ]
    print_table(("image", "score", "p-value", "decision", "overlay"), cells, caption=statement)
