"""``csflow score``: score image files without a pipeline or server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.errors import DataError, UsageError
from csflow.runs.services import Services
from csflow.system.progress import track

if TYPE_CHECKING:
    from PIL.Image import Image

    from csflow.detector.engine import Engine
    from csflow.detector.prediction import Prediction

_NAMED = 20
"""Number of images that a message about failures names."""


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
    rows: list[dict[str, object]] = []
    failures: list[DataError] = []
    scored = zip(paths, files, _predictions(engine, files), strict=True)
    for path, file, outcome in track(scored, total=len(files), label="score"):
        if isinstance(outcome, DataError):
            failures.append(outcome)
            continue
        image, prediction = outcome
        picture = overlay(image, prediction.anomaly_map, calibration.scale, calibration.region_threshold)
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
        print_json({"threshold": calibration.threshold, "scores": rows, "failed": [str(each) for each in failures]})
    elif rows:
        _print(rows, calibration.statement)
    if failures:
        raise _unscored(failures, len(files))


def _unscored(failures: list[DataError], total: int) -> DataError:
    """Make one error of those of single images."""
    if total == 1:
        return failures[0]
    named = "\n".join(f"  {each}" for each in failures[:_NAMED])
    more = f"\n  and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return DataError(f"{len(failures)} of {total} images could not be scored:\n{named}{more}")


def _predictions(engine: Engine, files: list[Path]) -> Iterator[tuple[Image, Prediction] | DataError]:
    """Read and score a few images per core at a time, since all of them together might not fit into memory.

    Yields:
        For each file its image and prediction, or the reason why it cannot be read.
    """
    from csflow.detector.engine import CHUNK

    size = CHUNK * engine.threads
    for start in range(0, len(files), size):
        read = [_read(engine, file) for file in files[start : start + size]]
        images = [each for each in read if not isinstance(each, DataError)]
        predictions = iter(engine.predict(images))
        yield from (each if isinstance(each, DataError) else (each, next(predictions)) for each in read)


def _read(engine: Engine, file: Path) -> Image | DataError:
    try:
        return engine.read(file)
    except DataError as error:
        return error


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
    from csflow.data.image_files import FORMATS, find_images, say_left_out

    found = find_images(folder)
    say_left_out(found.left_out, "score", folder)
    if not found.images:
        raise UsageError(f"No images in {folder}. Expected image files ({', '.join(FORMATS)}) in it or in its folders.")
    return [folder / image for image in found.images]


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
