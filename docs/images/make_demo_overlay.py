"""Draw the README's demo pictures again, with the demo line's champion: run `make demo` first.

    .venv/bin/python docs/images/make_demo_overlay.py

The workspace is `.csflow`, or the folder that `CSFLOW_HOME` names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from csflow.config import load_line
from csflow.detector.engine import Engine
from csflow.release.locate import locate_detector
from csflow.reporting.sheet import GOOD_KIND, judged_sheet
from csflow.runs.checkout import materialise
from csflow.runs.services import Services

HERE = Path(__file__).resolve().parent
PICTURES = {"demo-overlay.png": (6, 1500), "demo-overlay-narrow.png": (3, 840)}
"""Number of parts across and width in pixels of each picture: for a desktop, and for a phone."""


def main() -> None:
    """Judge one test image of every kind and write the labelled pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", default="demo-texture", help="a line that has a champion (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the pictures (default: docs/images)")
    options = parser.parse_args()
    services = Services.from_environment()
    manifest, _ = materialise(load_line(options.line), services.workspace)
    files = first_of_each_kind(manifest.rows(role="test").files)
    detector = Engine.load(locate_detector(options.line, services))
    for name, (across, width) in PICTURES.items():
        write_small_png(judged_sheet(detector, files, across=across), width, options.out / name)
        print(options.out / name)


def first_of_each_kind(files: list[Path]) -> list[Path]:
    """Return the first file of each folder, that of the good parts first."""
    kinds: dict[str, Path] = {}
    for file in sorted(files, key=lambda f: (f.parent.name != GOOD_KIND, f.parent.name, f.name)):
        kinds.setdefault(file.parent.name, file)
    return list(kinds.values())


def write_small_png(picture: Image.Image, width: int, target: Path) -> None:
    """Write a picture with a palette of 256 colours, a quarter of the size of one in full colour.

    The palette covers the range of colours rather than their frequency: otherwise the fabric would take all of it.
    """
    smaller = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    palette = smaller.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(target, optimize=True)


if __name__ == "__main__":
    main()
