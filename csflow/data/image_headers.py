"""Judge a picture by its header: refuse it before anything is decoded, and count what its data would take.

A small file can claim any size. A picture is refused whose header claims more than csflow takes, and one whose header
says less than its data would fill. AVIF is the exception: libavif decodes up to 16384 x 16384 pixels of a stream whose
container claims fewer (96 x 96 took 177 MB), which is one reason why servers do not open it.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import TiffImagePlugin
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from csflow.errors import DataError

MAX_PIXELS = 89_478_485
"""Largest pixel count of an image (9459 squared, where Pillow begins to warn): a small file can claim terabytes."""

MAX_SIDE = 65_535
"""Longest side in pixels: what JPEG can hold. Line-scan cameras write pictures of 2 048 x 40 000 pixels, say."""

MAX_RATIO = 1_000
"""Largest ratio of the sides. Pillow takes up to 30 bytes for a row of one pixel (2.7 GB for 1 x 89 million), and a
picture that is stretched to a square from 1 : 1 000 shows nothing; line-scan pictures have 1 : 5 to 1 : 100."""

_PIECES = 65_536
_PIECE = 256
"""A file may be read in so many pieces, and in one more for so many of its bytes: Pillow reads a header of millions of
empty blocks one by one in Python, which takes minutes, and keeps an object for each."""

_IN_PIECES = frozenset({"qoi", "bmp_rle"})
"""Decoders of Pillow that read single bytes."""

INTERPRETED = _IN_PIECES | {"ppm_plain"}
"""Decoders of Pillow that are written in Python: 1 to 3 seconds a million pixels, during which no other thread runs
well."""

_SIZES_OF_TIFF = frozenset({256, 257, 258, 277, 278, 322, 323})
_IMAGE_WIDTH, _IMAGE_LENGTH, _ROWS_OF_STRIP, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 278, 322, 323
_DIRECTORIES_OF_TIFF = frozenset({34665, 34853, 40965})
_BYTES_OF_TIFF = frozenset({1, 2, 6, 7})
_OFFSETS_OF_TIFF = frozenset({273, 279, 324, 325})
_VALUES = 2**19
"""Numbers that a TIFF may hold: 350 000 tiles of 16 x 16 pixels are the most that pictures need."""

_ENTRIES = 1_000
_TEXTS = 16
"""Compressed texts that a PNG may hold; each can fill 4 MiB."""

_STARTS_OF_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
_START_OF_PNG = b"\x89PNG\r\n\x1a\n"
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"


class EncodedImage(io.BytesIO):
    """The bytes of an image file, which can be read in a limited number of pieces."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)
        self._left = _PIECES

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as every file does.

        Raises:
            OSError: If the file was read in too many pieces.
        """
        self._left -= 1
        if self._left < 0:
            raise OSError("it consists of too many small blocks")
        return super().read(size)

    def allow_pixels(self, image: ImageFile) -> None:
        """Allow the pieces in which the pixels are read, once the header has been."""
        by_bytes = any(tile.codec_name in _IN_PIECES for tile in image.tile)
        self._left = 2 * self._size + _PIECES if by_bytes else self._size // _PIECE + _PIECES


def refuse_size(size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture that is too large, too long or too thin.

    Raises:
        DataError: If it has more than ``max_pixels`` pixels, or is longer or thinner than csflow takes.
    """
    width, height = size
    found = f"{name} is {width} x {height} pixels, expected"
    if width * height > max_pixels:
        raise DataError(f"{found} at most {max_pixels} in all. Crop or shrink it.")
    if max(size) > MAX_SIDE:
        raise DataError(f"{found} sides of at most {MAX_SIDE}. Cut it into parts.")
    if max(size) > MAX_RATIO * min(size):
        raise DataError(f"{found} a long side of at most {MAX_RATIO} times the short one. Cut it into parts.")


def refuse_more_data(image: ImageFile, content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture whose data would fill more memory than its header says.

    Raises:
        DataError: If header and data contradict each other.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = [entry.tag for entry in _entries_of_tiff(content, most=1) if entry.tag in _SIZES_OF_TIFF]
        if len(tags) > len(set(tags)):  # Pillow takes the last, libtiff the first
            raise DataError(f"{name} is damaged: it states its size twice. Export it again, as PNG.")
        tile = tile_of_tiff(image)
        if math.prod(tile) > max_pixels:
            raise DataError(
                f"{name} has tiles of {tile[0]} x {tile[1]} pixels, expected at most {max_pixels} in all. "
                "Export it without tiles, or as PNG."
            )
    elif image.format == "JPEG2000":
        width, height, components, _ = layout_of_jpeg2000(content)
        if width > image.width or height > image.height or not 1 <= components <= 4:
            raise DataError(
                f"{name} is damaged: its header says {image.width} x {image.height} pixels, its data {width} x "
                f"{height} of {components} components. Export it again, as PNG."
            )


def tile_of_tiff(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """Return width and height in pixels of what a TIFF is unpacked by: a tile, or a strip of rows."""
    width, height = image.tag_v2.get(_TILE_WIDTH), image.tag_v2.get(_TILE_LENGTH)
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    width, height = image.tag_v2[_IMAGE_WIDTH], image.tag_v2[_IMAGE_LENGTH]
    return width, min(height, image.tag_v2.get(_ROWS_OF_STRIP, height))


def layout_of_jpeg2000(content: bytes) -> tuple[int, int, int, int]:
    """Return width, height, number of components and number of tiles that a JPEG 2000 codestream states.

    They are those of the marker SIZ (ISO/IEC 15444-1, A.5.1), which follows the first one.

    Raises:
        ValueError: If there is no codestream.
    """
    at = start_of_jpeg2000(content)
    if at < 0 or len(content) < at + 42:
        raise ValueError("it has no codestream")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", content, at + 8
    )
    if not (tile_width and tile_height):
        raise ValueError("it has tiles of no size")
    across = math.ceil(max(0, right - tile_left) / tile_width)
    down = math.ceil(max(0, bottom - tile_top) / tile_height)
    return right - left, bottom - top, components, across * down


def start_of_jpeg2000(content: bytes) -> int:
    """Return the offset of the codestream in a file of JPEG 2000 (boxes, or the codestream alone); -1 for none."""
    if content.startswith(_START_OF_CODESTREAM):
        return 0
    at = 0
    for _ in range(_PIECES):
        if at + 16 > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, at + 8)
            head = 16
        if kind == b"jp2c":
            return at + head if content.startswith(_START_OF_CODESTREAM, at + head) else -1
        if length < head:
            break
        at += length
    return -1


def chunks_of_png(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length in bytes of the chunks of a PNG, of as many as may be read."""
    at = 8
    for _ in range((len(content) // _PIECE + _PIECES) // 2):  # a chunk is read in two pieces at least
        if at + 8 > len(content):
            break
        length, name = struct.unpack_from(">I4s", content, at)
        yield name, at + 8, length
        at += 12 + length


def values_of_tiff(content: bytes) -> int:
    """Return how many numbers the first directory of a TIFF and those below it hold; Pillow makes objects of them."""
    entries = _entries_of_tiff(content)
    return sum(entry.length for entry in entries if entry.kind not in _BYTES_OF_TIFF or entry.tag in _OFFSETS_OF_TIFF)


def is_decoded_at_once(image: JpegImageFile, content: bytes) -> bool:
    """Return True for a JPEG whose coefficients are all kept: a progressive one, or one of several scans."""
    if image.info.get("progressive"):
        return True
    at = 2
    for _ in range(_PIECES):
        at = content.find(b"\xff", at)
        if at < 0 or at + 5 > len(content):
            break
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker <= 1 or 0xD0 <= marker <= 0xD9:  # without a length
            at += 2
        elif marker == 0xDA:
            return content[at + 4] < image.layers
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return True


def refuse_tables(content: bytes, name: str) -> None:
    """Refuse a file whose tables and texts would take much memory or time when it is opened.

    Raises:
        DataError: If a TIFF has more numbers or entries, or a PNG more compressed texts, than pictures have.
    """
    if content.startswith(_STARTS_OF_TIFF):
        try:
            values, entries = values_of_tiff(content), len(_entries_of_tiff(content))
        except struct.error:
            return  # cut: opening it says so
        for found, most, what in ((values, _VALUES, "numbers"), (entries, _ENTRIES, "entries")):
            if found > most:
                raise DataError(
                    f"{name} has tables of {found} {what}, expected at most {most}. Export it in larger strips, or as "
                    "PNG."
                )
    elif content.startswith(_START_OF_PNG):
        texts = sum(chunk in (b"zTXt", b"iTXt") for chunk, _, _ in chunks_of_png(content))
        if texts > _TEXTS:
            raise DataError(f"{name} has {texts} compressed texts, expected at most {_TEXTS}. Export it without texts.")


class _Entry(NamedTuple):
    """An entry of a TIFF's directory: its tag, the type of its values, how many there are, and the first, or where."""

    tag: int
    kind: int
    length: int
    value: int


def _entries_of_tiff(content: bytes, most: int = 4) -> list[_Entry]:
    """Return the entries of the first directory of a TIFF and of the EXIF directories below it, as they are written.

    Args:
        content: The bytes of the file.
        most: How many directories to read at most.

    Raises:
        struct.error: If the first directory is cut.
    """
    order = "<" if content.startswith(b"I") else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    head, layout = (order + "Q", order + "HHQQ") if big else (order + "H", order + "HHII")
    starts = list(struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4))
    entries: list[_Entry] = []
    while starts and most:
        start, most = starts.pop(0), most - 1
        (count,) = struct.unpack_from(head, content, start)
        start += struct.calcsize(head)
        step = struct.calcsize(layout)
        for each in range(min(count, (len(content) - start) // step, _ENTRIES + 1)):
            entry = _Entry(*struct.unpack_from(layout, content, start + step * each))
            entries.append(entry)
            if entry.tag in _DIRECTORIES_OF_TIFF and entry.value + 8 <= len(content):
                starts.append(entry.value)
    return entries
