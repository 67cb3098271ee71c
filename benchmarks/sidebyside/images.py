"""Provide the images to measure on: the user's, or drawn ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
SUFFIX = {"JPEG": "jpg", "PNG": "png"}
SIDE = 512
DEFECT_EVERY = 4


def find_images(folder: Path, count: int) -> list[Path]:
    """Return the first ``count`` image files below a folder, by path, without ground-truth masks.

    Raises:
        ValueError: If there are fewer.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = [path.resolve() for path in files if "ground_truth" not in path.parts]
    if len(images) < count:
        raise ValueError(f"{folder} holds {len(images)} images, expected {count}. Name another folder or --count.")
    return images[:count]


def draw_images(
    folder: Path, count: int, seed: int, *, side: int = SIDE, kinds: Sequence[str] = ("JPEG",)
) -> list[Path]:
    """Draw pictures of the demo's fabric, every fourth with a defect; without scipy draw noise.

    Args:
        folder: New folder for them.
        count: How many.
        seed: Determines all of them.
        side: Height and width in pixels.
        kinds: Pillow's names of file formats, which take turns.
    """
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    files = []
    for number, drawn_from in enumerate(seeds):
        pixels = _fabric(drawn_from, number, side) if util.find_spec("scipy") else _noise(drawn_from, side)
        buffer = io.BytesIO()
        kind = kinds[number % len(kinds)]
        Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(buffer, kind, quality=90)
        path = folder / f"{number:04d}.{SUFFIX[kind]}"
        path.write_bytes(buffer.getvalue())
        files.append(path.resolve())
    return files


def _fabric(seed: int, number: int, side: int) -> NDArray[np.float32]:
    from csflow.synthetic.fabric import FABRIC_DEFECTS, draw_fabric

    defects = tuple(FABRIC_DEFECTS)
    broken = number % DEFECT_EVERY == DEFECT_EVERY - 1
    pixels: NDArray[np.float32] = draw_fabric(
        seed, defects[number // DEFECT_EVERY % len(defects)] if broken else None, side
    )
    return pixels


def _noise(seed: int, side: int) -> NDArray[np.float32]:
    """Make smooth noise: random values on a coarse grid, enlarged."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / np.float32(255)
