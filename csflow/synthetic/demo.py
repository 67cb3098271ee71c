"""Draw the demo lines as folders of images in MVTec AD layout."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, binary_opening

from csflow.errors import DataError, UsageError
from csflow.synthetic.fabric import FABRIC_DEFECTS, draw_fabric
from csflow.synthetic.gear import GEAR_DEFECTS, draw_gear
from csflow.synthetic.noise import Array
from csflow.system.files import new_directory
from csflow.system.progress import track

SIDE = 256
OVERSAMPLING = 2
JPEG_QUALITY = 78
_VISIBLE_CHANGE = 0.03  # change of a channel (0..1) that counts as part of the defect


@dataclass(frozen=True)
class DemoLine:
    """A demo line and how it is drawn.

    Attributes:
        draw: Called as ``draw(seed, defect, side)``; returns RGB in 0..1, ``(side, side, 3)``.
        defects: Types of defect.
        train: Number of good images to learn from.
        test_good: Number of good test images.
        test_defective: Number of defective test images.
    """

    draw: Callable[[int, str | None, int], Array]
    defects: tuple[str, ...]
    train: int = 100
    test_good: int = 20
    test_defective: int = 30


DEMO_LINES: dict[str, DemoLine] = {
    "demo-texture": DemoLine(draw_fabric, tuple(FABRIC_DEFECTS)),
    "demo-object": DemoLine(draw_gear, tuple(GEAR_DEFECTS)),
}


def draw_demo(dest: Path, *, lines: Sequence[str] = tuple(DEMO_LINES), seed: int = 0) -> list[Path]:
    """Draw demo lines, each into ``dest / NAME``, in MVTec AD layout with masks.

    The same seed gives the same pixels, but another version of NumPy or of the JPEG encoder may change the last bits.
    That is why the images of the demo are versioned and not drawn again.

    Args:
        dest: Folder of the lines; created if needed.
        lines: Names from ``DEMO_LINES``.
        seed: Another seed draws other pieces of the same products.

    Returns:
        The folders that were written.

    Raises:
        UsageError: If a name is not a demo line.
        DataError: If a line's folder exists and is not empty. Nothing is written then.
    """
    for name in lines:
        if name not in DEMO_LINES:
            raise UsageError(f"There is no demo line {name!r}. Choose from: {', '.join(DEMO_LINES)}.")
        if (dest / name).is_dir() and any((dest / name).iterdir()):
            raise DataError(f"{dest / name} is not empty. Choose another folder or remove it first.")
    for name in lines:
        with new_directory(dest / name) as folder:
            _draw_line(name, folder, np.random.SeedSequence([seed, *name.encode()]))
    return [dest / name for name in lines]


def _draw_line(name: str, folder: Path, seeds: np.random.SeedSequence) -> None:
    line = DEMO_LINES[name]
    pieces = list(_pieces(line))
    drawn_from = (int(seed) for seed in seeds.generate_state(len(pieces)))
    for (path, defect), seed in zip(track(pieces, total=len(pieces), label=f"draw {name}"), drawn_from, strict=True):
        picture = _picture(line, seed, defect)
        _save(picture, folder / f"{path}.jpg")
        if defect:
            mask = _difference(_picture(line, seed, None), picture)
            _save(mask, folder / f"{path.replace('test', 'ground_truth', 1)}_mask.png")


def _pieces(line: DemoLine) -> Iterator[tuple[str, str | None]]:
    """Yield the path in the layout and the defect of every image; the types of defect alternate."""
    for number in range(line.train):
        yield f"train/good/{number:03d}", None
    for number in range(line.test_good):
        yield f"test/good/{number:03d}", None
    for number in range(line.test_defective):
        round_, kind = divmod(number, len(line.defects))
        yield f"test/{line.defects[kind]}/{round_:03d}", line.defects[kind]


def _picture(line: DemoLine, seed: int, defect: str | None) -> Image.Image:
    """Draw a picture at a larger size and reduce it, so that edges are smooth."""
    fine = line.draw(seed, defect, SIDE * OVERSAMPLING)
    large = Image.fromarray(np.round(fine * 255).astype(np.uint8))
    return large.reduce(OVERSAMPLING)


def _difference(good: Image.Image, bad: Image.Image) -> Image.Image:
    """Make the mask of the defect: the pixels that differ visibly from the same piece without it."""
    change = np.abs(np.asarray(bad, dtype=np.int16) - np.asarray(good, dtype=np.int16)).max(axis=2)
    differs: NDArray[np.bool_] = change > 255 * _VISIBLE_CHANGE
    closed = binary_closing(np.pad(differs, 6), iterations=4)[6:-6, 6:-6]
    opened = binary_opening(closed)
    return Image.fromarray(opened if opened.any() else closed)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if path.suffix == ".png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    path.write_bytes(buffer.getvalue())
