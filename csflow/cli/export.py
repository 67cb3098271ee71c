"""``csflow export``: write the whole detector as one file, for a device that has only an inference engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import require_replaceable
from csflow.runs.services import Services
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image

    from csflow.detector.detector import Detector

_COMPARED = 3


def export(
    line: Annotated[str, typer.Argument(metavar="LINE", help="LINE (its champion) or a detector directory.")],
    output: Annotated[Path | None, typer.Option(help="File to write.", show_default="LINE.onnx")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="This version instead of the champion.")] = None,
) -> None:
    """Write the detector as one ONNX file: images in; score, map and decision out."""
    from csflow.detector.detector import Detector
    from csflow.detector.export import export_file
    from csflow.release.locate import locate_detector

    services = Services.from_environment()
    detector = Detector.load(locate_detector(line if version is None else f"{line}@{version}", services))
    target = output or Path(f"{detector.line.line}.onnx")
    require_replaceable(target, b"csflow_format")
    examples = _images_at_hand(services.workspace, detector)
    export_file(detector, target, examples)
    compared = f"{len(examples)} images of the line" if examples else "drawn images (none of the line is at hand)"
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB, compared with the detector on {compared}.")
    decision = "" if detector.calibration.threshold is None else ", defective"
    typer.echo(f"Input: images (N, height, width, 3), uint8 RGB. Outputs: score, map{decision}.")


def _images_at_hand(workspace: Workspace, detector: Detector) -> list[Image]:
    """Read a few images of the line's last checkout."""
    from csflow.data.image_files import find_images

    folder = workspace.data / detector.line.line
    found = find_images(folder).images if folder.is_dir() else ()
    files = [folder / path for path in found if "ground_truth" not in path.parts]
    return [detector.read(file) for file in files[:: max(1, len(files) // _COMPARED)][:_COMPARED]]
