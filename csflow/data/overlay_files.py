"""Name, write and recognise the overlays of scored images, so that none replaces a picture or is scored itself."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from csflow.errors import UsageError
from csflow.system.files import write_atomic
from csflow.system.wording import shorten

_KEY, _VALUE = "csflow", "overlay"
_CHUNK = b"tEXt" + f"{_KEY}\0{_VALUE}".encode()
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = 4096
"""Bytes at the start of a PNG in which the mark is looked for; Pillow writes it before the pixels."""
_LONGEST = 200
"""Bytes of a name at most: with what is added they stay below the 255 that file systems allow."""


def write_overlay(path: Path, picture: Image.Image) -> None:
    """Write an overlay as PNG, marked as drawn by csflow.

    Raises:
        CsflowError: If the disk is full or the folder cannot be written; ``path`` is then untouched.
    """
    mark = PngInfo()
    mark.add_text(_KEY, _VALUE)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=mark)
    write_atomic(path, buffer.getvalue())


def is_overlay(path: Path) -> bool:
    """Return True for a file that :func:`write_overlay` wrote, whatever its name is now."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith(_SIGNATURE) and _CHUNK in head


def overlay_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """Choose a path in ``folder`` for the overlay of each image.

    An overlay is named after its image (``x.png``: ``x-overlay.png``). Images of the same name get as much of their
    suffixes and folders into the names as tells them apart, on file systems that ignore case as well. Overlays that
    csflow drew before may be replaced.

    Args:
        images: Different image files.
        folder: Folder of the overlays; it need not exist.

    Returns:
        One path for each image, in their order, all different.

    Raises:
        UsageError: If a file that csflow did not draw has one of the names.
    """
    paths = [folder / f"{name}-overlay.png" for name in _different_names(images)]
    foreign = [str(path) for path in paths if (path.exists() or path.is_symlink()) and not is_overlay(path)]
    if foreign:
        raise UsageError(
            f"{shorten(foreign)} would be replaced, but csflow did not draw it. Choose another folder with --out, or "
            "move it."
        )
    return paths


def _different_names(images: Sequence[Path]) -> list[str]:
    """Name each image by its stem, then by its name, then by more and more of its folders, until all names differ."""
    detail = [0] * len(images)
    while True:
        names = [_name(image, level) for image, level in zip(images, detail, strict=True)]
        count = Counter(name.casefold() for name in names)
        growing = [
            index
            for index, name in enumerate(names)
            if count[name.casefold()] > 1 and detail[index] < len(images[index].absolute().parts)
        ]
        if not growing:
            return _numbered(names)
        for index in growing:
            detail[index] += 1


def _name(image: Path, detail: int) -> str:
    name = "-".join(image.absolute().parts[1:][-detail:]) if detail else image.stem
    return os.fsencode(name)[-_LONGEST:].decode(errors="ignore")


def _numbered(names: list[str]) -> list[str]:
    """Add a number to each name that is still not the only one."""
    used: set[str] = set()
    found = []
    for name in names:
        number, candidate = 1, name
        while candidate.casefold() in used:
            number += 1
            candidate = f"{name}-{number}"
        used.add(candidate.casefold())
        found.append(candidate)
    return found
