"""Find the image files below a folder, and say what is left out.

Links to folders and files are followed; a link that leads back into its own path ends there. A file whose suffix is
not that of an image is opened: its content decides. Hidden files and overlays that csflow drew are no images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from csflow.data.overlay_files import is_overlay
from csflow.errors import DataError
from csflow.system.progress import say
from csflow.system.wording import shorten

FORMATS = (
    "PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "PCX", "SGI", "QOI",
)  # fmt: skip
"""Readers of Pillow that are used. The others start external programs (EPS), need Windows (WMF), decode nothing (HDF5)
or do not read pictures of a camera."""

SERVED_FORMATS = tuple(name for name in FORMATS if name not in ("JPEG2000", "AVIF", "QOI"))
"""Formats that a server opens for strangers: those that cameras and gateways send, because their headers bound what
decoding takes. JPEG 2000 and AVIF stay closed, because theirs do not: precincts and tiles of a JPEG 2000 file cost any
multiple of its pixels, and a stream inside of AVIF may be of 16384 x 16384 pixels whatever its container says. QOI
stays closed, and with it plain PPM and run-length BMP, because Pillow decodes them in Python (1 to 3 seconds a million
pixels)."""

SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".avifs",
        ".bmp",
        ".bw",
        ".dib",
        ".gif",
        ".icb",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
        ".jpx",
        ".mpo",
        ".pbm",
        ".pcx",
        ".pfm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".qoi",
        ".rgb",
        ".rgba",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".vda",
        ".vst",
        ".webp",
    ]
)
"""Suffixes of these formats, in lower case (MPO is several JPEGs)."""

UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
COMPANIONS = frozenset({"groups.csv", "license.txt", "readme.txt"})
"""Files that belong to a data set and are not worth a word."""

_VERSIONED = frozenset({".git", ".dvc"})
_NO_WORD = "."
"""Reason to leave out a file that nobody would miss."""

_SIGNED_FORMATS = tuple(name for name in FORMATS if name != "TGA")  # TGA has no signature: it could be anything


@dataclass(frozen=True)
class FoundImages:
    """The image files below a folder.

    Attributes:
        images: Their paths relative to the folder, sorted.
        left_out: Why each other file or folder is left out, by its path.
    """

    images: tuple[PurePosixPath, ...]
    left_out: dict[str, str]


def find_images(folder: Path) -> FoundImages:
    """Find the image files in a folder and its subfolders, links included.

    Raises:
        DataError: If a folder cannot be read, or the name of an image cannot be written into a table.
    """
    images: list[PurePosixPath] = []
    left_out: dict[str, str] = {}
    for relative, path in _files_below(folder, PurePosixPath(), (os.path.realpath(folder),), left_out):
        if reason := _reason_to_leave_out(path):
            if reason != _NO_WORD:
                left_out[relative.as_posix()] = reason
        else:
            images.append(relative)
    broken = [ascii(str(name)) for name in images if UNWRITABLE.search(str(name))]
    if broken:
        raise DataError(
            f"{folder}: names with control characters or not in UTF-8: {shorten(broken)}. Rename the files."
        )
    return FoundImages(tuple(sorted(images)), left_out)


def say_left_out(left_out: Mapping[str, str], label: str, source: Path) -> None:
    """Print how many files were left out, and the first of them with the reasons; nothing if there were none."""
    if left_out:
        named = [f"{name} ({reason})" for name, reason in sorted(left_out.items())]
        say(f"{label}: {len(named)} files of {source} are left out: {shorten(named)}")


def is_image(path: Path) -> bool:
    """Return True for the name of an image file that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def has_signature(head: bytes, formats: Sequence[str] = FORMATS) -> bool:
    """Return True if the first 16 bytes of a file could be those of an image of one of the formats."""
    from PIL import Image

    Image.init()
    accepts = (Image.OPEN[name][1] for name in formats if name in Image.OPEN and name in _SIGNED_FORMATS)
    return any(accept is not None and accept(head[:16].ljust(16, b"\0")) is True for accept in accepts)


def _files_below(
    folder: Path, relative: PurePosixPath, ancestors: tuple[str, ...], left_out: dict[str, str]
) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield the files below a folder; ``ancestors`` are the true paths of the folders that lead to it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"Cannot read {folder}: {error.strerror}. Check its permissions.") from error
    for entry in entries:
        name, path = relative / entry.name, folder / entry.name
        if not _is_folder(entry):
            yield name, path
        elif entry.name.startswith("."):
            if entry.name not in _VERSIONED:
                left_out[name.as_posix()] = "hidden"
        elif (true := os.path.realpath(path)) in ancestors:
            left_out[name.as_posix()] = "a link to a folder that holds it"
        else:
            yield from _files_below(path, name, (*ancestors, true), left_out)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _reason_to_leave_out(path: Path) -> str:
    """Say why a file is not taken as an image; '' if it is, :data:`_NO_WORD` if nobody would miss it."""
    if path.name.startswith("."):
        return "hidden" if path.suffix.lower() in SUFFIXES else _NO_WORD
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "not a plain file"
    if is_overlay(path):
        return "an overlay that csflow drew"
    if is_image(path) or opens_as_image(path):
        return ""
    return _NO_WORD if path.name.lower() in COMPANIONS else "not an image"


def opens_as_image(path: Path) -> bool:
    """Return True if the content of a file is an image, whatever its name."""
    from PIL import Image

    try:
        with path.open("rb") as file:
            if not has_signature(file.read(16)):
                return False
        with Image.open(path, formats=_SIGNED_FORMATS):
            return True
    except OSError:
        return False
    except Exception:  # on damaged bytes Pillow's readers raise nearly every kind of error
        return False
