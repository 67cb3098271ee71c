"""Decode and measure the images of a manifest, one row an image.

These are measurements; the data gate decides which of them are acceptable (:mod:`csflow.adapters.data_quality`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from csflow.data.images import decode_image, opened_image
from csflow.data.manifest import Manifest
from csflow.data.masks import measure_mask
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
        frames: Number of pictures in the file; the first is read.
        constant: True if all pixels have the same colour.
        brightest: Largest value of all pixels and colours, 0 to 255.
        levels: Number of different values, 1 to 256.
        pixels: SHA-256 of the decoded pixels, so that a re-saved copy counts as a copy.
        mask_problem: Why the mask cannot be read; '' if it can.
        mask_size: ``WIDTH x HEIGHT`` of the mask.
        mask_fits: True if the mask has the size of its image.
        mask_marks: True if any pixel of the mask is not 0.
        mask_unclear: Why the mask does not say clearly which pixels are defective; '' if it does.
        mask_share: Share of the mask's pixels that are marked, 0 to 1.
    """

    readable: bool
    problem: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    constant: bool | None = None
    brightest: int | None = None
    levels: int | None = None
    pixels: str | None = None
    mask_problem: str | None = None
    mask_size: str | None = None
    mask_fits: bool | None = None
    mask_marks: bool | None = None
    mask_unclear: str | None = None
    mask_share: float | None = None


def inspect_images(manifest: Manifest, bit_depth: int | None = None) -> pd.DataFrame:
    """Decode and measure every image and mask of a manifest, in a thread pool.

    Args:
        manifest: The line's images.
        bit_depth: Bits that the line's camera fills in 16-bit samples.

    Returns:
        The manifest's columns, those of `InspectedImage`, and columns derived from both: ``short_side``, ``long_side``,
        ``size``, ``elongation`` (long by short side); ``copy_of`` (another image of the same split with equal pixels,
        '' for the first), ``leaked_from`` (for a test image, an image in train with equal pixels), ``contradicts`` (an
        image with equal pixels and the other label).
    """
    frame = manifest.frame.reset_index(drop=True)
    files = list(zip(manifest.files, (manifest.root / m if m else None for m in frame["mask"]), strict=True))
    with ThreadPoolExecutor(cores()) as pool:
        rows = list(track(pool.map(partial(_measure, bit_depth), files), total=len(files), label="inspect"))
    measured = pd.DataFrame(
        [asdict(row) for row in rows], columns=list(InspectedImage.__dataclass_fields__), dtype=object
    )
    table = pd.concat([frame, measured], axis=1)
    sides = measured[["width", "height"]].astype("Int64")
    table["short_side"], table["long_side"] = sides.min(axis=1), sides.max(axis=1)
    table["elongation"] = table["long_side"] / table["short_side"]
    table["size"] = [f"{w} x {h}" if w else None for w, h in zip(table["width"], table["height"], strict=True)]
    return table.assign(**{name: list(values) for name, values in _copies(table).items()})


def _measure(bit_depth: int | None, files: tuple[Path, Path | None]) -> InspectedImage:
    file, mask_file = files
    try:
        content = file.read_bytes()
        picture = decode_image(content, name=file.name, bit_depth=bit_depth)
        with opened_image(content, file.name) as raw:
            # Pillow names the byte order of 16-bit samples in the mode, which is of no interest here.
            mode = "I;16" if raw.mode.startswith("I;16") else raw.mode
            frames = int(getattr(raw, "n_frames", 1))
    except (OSError, DataError) as error:
        return InspectedImage(readable=False, problem=_reason(error))
    pixels = np.asarray(picture)
    used = np.flatnonzero(np.bincount(pixels.reshape(-1), minlength=256))
    measured = InspectedImage(
        readable=True,
        width=picture.width,
        height=picture.height,
        mode=mode,
        frames=frames,
        constant=bool((pixels == pixels[0, 0]).all()),
        brightest=int(used[-1]),
        levels=len(used),
        pixels=sha256(f"{picture.size}".encode() + pixels.tobytes()).hexdigest(),
    )
    return _with_mask(measured, mask_file, picture.size) if mask_file else measured


def _with_mask(measured: InspectedImage, file: Path, size: tuple[int, int]) -> InspectedImage:
    try:
        mask = measure_mask(file)
    except DataError as error:
        return replace(measured, mask_problem=str(error))
    return replace(
        measured,
        mask_problem="",
        mask_size=f"{mask.width} x {mask.height}",
        mask_fits=(mask.width, mask.height) == size,
        mask_marks=mask.share > 0,
        mask_unclear=mask.unclear if mask.share > 0 else "",
        mask_share=mask.share,
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
