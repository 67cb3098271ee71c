"""Decode and measure the images of a manifest, one row an image.

These are measurements; the data gate decides which of them are acceptable (:mod:`csflow.adapters.data_quality`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from csflow.data.images import FORMATS, decode_image
from csflow.data.manifest import Manifest
from csflow.errors import DataError
from csflow.system.cores import cores
from csflow.system.progress import track


@dataclass(frozen=True)
class InspectedImage:
    """The measurements of one image and its mask; None where there is nothing to measure.

    Attributes:
        readable: True if the reader of the feature extraction can read the file.
        problem: Why it cannot; '' if it can.
        width: Columns after EXIF rotation.
        height: Rows after EXIF rotation.
        mode: Pillow's mode of the file before conversion.
        constant: True if all pixels have the same colour.
        pixels: SHA-256 of the decoded pixels, so that a re-saved copy counts as a copy.
        mask_problem: Why the mask cannot be read; '' if it can.
        mask_size: ``WIDTH x HEIGHT`` of the mask.
        mask_fits: True if the mask has the size of its image.
        mask_marks: True if any pixel of the mask is not 0.
    """

    readable: bool
    problem: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    constant: bool | None = None
    pixels: str | None = None
    mask_problem: str | None = None
    mask_size: str | None = None
    mask_fits: bool | None = None
    mask_marks: bool | None = None


def inspect_images(manifest: Manifest) -> pd.DataFrame:
    """Decode and measure every image and mask of a manifest, in a thread pool.

    Returns:
        The manifest's columns, those of `InspectedImage`, and columns derived from both: ``short_side``, ``long_side``,
        ``size``; ``copy_of`` (another image of the same split with equal pixels, '' for the first), ``leaked_from``
        (for a test image, an image in train with equal pixels), ``contradicts`` (an image with equal pixels and the
        other label).
    """
    frame = manifest.frame.reset_index(drop=True)
    files = list(zip(manifest.files, (manifest.root / m if m else None for m in frame["mask"]), strict=True))
    with ThreadPoolExecutor(cores()) as pool:
        rows = list(track(pool.map(_measure, files), total=len(files), label="inspect"))
    measured = pd.DataFrame(
        [asdict(row) for row in rows], columns=list(InspectedImage.__dataclass_fields__), dtype=object
    )
    table = pd.concat([frame, measured], axis=1)
    sides = measured[["width", "height"]].astype("Int64")
    table["short_side"], table["long_side"] = sides.min(axis=1), sides.max(axis=1)
    table["size"] = [f"{w} x {h}" if w else None for w, h in zip(table["width"], table["height"], strict=True)]
    return table.assign(**{name: list(values) for name, values in _copies(table).items()})


def _measure(files: tuple[Path, Path | None]) -> InspectedImage:
    file, mask_file = files
    try:
        content = file.read_bytes()
        upright = decode_image(content, name=file.name)
        with Image.open(io.BytesIO(content), formats=FORMATS) as raw:
            mode = raw.mode
    except (OSError, DataError) as error:
        return InspectedImage(readable=False, problem=_reason(error))
    pixels = np.asarray(upright)
    measured = InspectedImage(
        readable=True,
        width=upright.width,
        height=upright.height,
        mode=mode,
        constant=bool((pixels == pixels[0, 0]).all()),
        pixels=sha256(f"{upright.size}".encode() + pixels.tobytes()).hexdigest(),
    )
    return _with_mask(measured, mask_file, upright.size) if mask_file else measured


def _with_mask(measured: InspectedImage, file: Path, size: tuple[int, int]) -> InspectedImage:
    try:
        mask = decode_image(file.read_bytes(), name=file.name).convert("L")
    except (OSError, DataError) as error:
        return replace(measured, mask_problem=_reason(error))
    return replace(
        measured,
        mask_problem="",
        mask_size=f"{mask.width} x {mask.height}",
        mask_fits=mask.size == size,
        mask_marks=mask.getbbox() is not None,
    )


def _reason(error: OSError | DataError) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _copies(table: pd.DataFrame) -> dict[str, list[str]]:
    """Find images with the same pixels as another, by the kind of copy; '' where there is none."""
    found: dict[str, list[str]] = {name: [""] * len(table) for name in ("copy_of", "leaked_from", "contradicts")}
    for same in _groups_of_equal_pixels(table):
        first: dict[str, str] = {}
        for index, path, split, label in same:
            original = first.setdefault(split, path)
            found["copy_of"][index] = original if original != path else ""
            train = [p for _, p, s, _ in same if s == "train"] if split == "test" else []
            found["leaked_from"][index] = train[0] if train else ""
            other = [p for _, p, _, kind in same if kind != label]
            found["contradicts"][index] = other[0] if other else ""
    return found


def _groups_of_equal_pixels(table: pd.DataFrame) -> Iterator[list[tuple[int, str, str, str]]]:
    for _, group in table.dropna(subset="pixels").groupby("pixels"):
        if len(group) > 1:
            columns = (group["path"], group["split"], group["label"])
            yield [(int(i), str(p), str(s), str(k)) for i, p, s, k in zip(group.index, *columns, strict=True)]
