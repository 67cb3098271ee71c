"""Bound the memory that decoding and sizing a picture takes, by its header alone.

Bytes for each pixel, measured as peak of resident memory at 20 million pixels (Pillow 13, ``tests/csflow/data/
test_decoding_cost.py`` measures again):

===================================================  =======  ========================================================
Picture                                              Bytes    Consists of
===================================================  =======  ========================================================
PNG, JPEG, BMP, TIFF, PPM, PCX, TGA: RGB             4.4      the picture itself (RGB takes 4 bytes in Pillow)
1 bit, grey, palette                                 5.1      1 + 4 of the result
16-bit grey; 32-bit grey                             6.2; 8.3 2 or 4 + 4
CMYK, LAB, alpha, colour profile                     8.2      4 + 4
turned by EXIF                                       8.1      two pictures for a moment
JPEG, progressive or in several scans                10.0     the picture + 2 for each sample (6.4 + 4:2:0 …)
TIFF, one strip; SGI of 16 bits                      7.0      the picture + its strip, or its channel
WebP                                                 16.7     two canvases, their bytes, the picture; a hostile
                                                              lossless one takes 365 more for each pixel
AVIF (8 bits)                                        11.6     planes, pixels, their bytes; 10 bits and grids take more
JPEG 2000, one tile                                  19.4     the picture + 5 for each sample
===================================================  =======  ========================================================

To it come a strip of rows to convert, what sizing takes, and what the file carries beside pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import PIL
from PIL import ExifTags, JpegImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from csflow.data.image_files import FORMATS
from csflow.data.image_headers import (
    INTERPRETED,
    MAX_PIXELS,
    chunks_of_png,
    is_decoded_at_once,
    layout_of_jpeg2000,
    tile_of_tiff,
    values_of_tiff,
)
from csflow.data.images import opened_image
from csflow.data.pixel_values import STRIP
from csflow.data.portable_maps import has_other_range

_MIB = 2**20
_FIXED = 2 * _MIB
_MARGIN = 50
"""The bound is 2 % above what the parts add up to."""

_OF_STRIP = 24
"""Bytes a pixel of a strip while it is converted: a few copies of 4 to 8 bytes."""

_BYTES_OF_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""What Pillow keeps for a pixel of a mode; 4 bytes for all others."""

_RESULT = 4
_WEIGHTS = 40
_FLATTENS_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""Pillow 13 shrinks a high picture from above first; before, Pillow always narrowed it first, row by row."""

_DECODER = {"WEBP": 13, "AVIF": 28, "GIF": 1, "TGA": 4, "SGI": 6}
"""Bytes that the decoder of a format keeps for a pixel beside the picture (TGA: it may be mirrored)."""

_COPIES = {"WEBP": 3, "AVIF": 2, "JPEG2000": 2}
"""How often the decoder of a format copies the file."""

_INTERPRETED_SAMPLE, _INTERPRETED = 5, 40 * _MIB
_TABLE_AND_STRIP = 6 * _MIB
_LINE_OF_JPEG = 256
_VALUE_OF_TIFF = 320
"""Bytes that Pillow keeps for an offset of a strip: numbers, and a description of where it belongs."""

_RESIZED = 1_000_000
"""Up to so many strips, libtiff makes a table of its own if that of the file is too short."""

_CODES, _SECOND_LEVEL = 6_000, 15_000
"""Bytes of five prefix codes of libwebp: five tables of 256 entries, and at most so much for a second level."""

_SIMPLE = frozenset({"raw", "raw_16", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"})
_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Texts of a PNG that can turn it."""

_TEXT = 5
"""Bytes for a byte of text or of a profile: its own, those of the decoded text (4 for a rare character)."""


def decoding_cost(
    content: bytes,
    name: str,
    *,
    image_size: int = 384,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> int:
    """Return how many bytes decoding and sizing an image file takes at most, beside the file itself.

    Only the header is read. JPEG 2000 and AVIF are taken at their word: a hostile file of these formats can take more,
    so :data:`csflow.data.image_files.SERVED_FORMATS` does without them.

    Args:
        content: The bytes of the image file.
        name: Names it in errors.
        image_size: Side in pixels of the finest level of the pyramid (``features.image_size``).
        max_pixels: See :func:`csflow.data.images.read_image`.
        formats: See :func:`csflow.data.images.read_image`.

    Raises:
        DataError: As opening the image would.
    """
    with opened_image(content, name, max_pixels=max_pixels, formats=formats) as image:
        return bytes_to_decode(image, content, image_size)


def pixels_cost(width: int, height: int, image_size: int = 384) -> int:
    """Return how many bytes an image of raw 8-bit RGB pixels and its sizing take at most, beside the pixels."""
    return _FIXED + width * height * _RESULT + _sizing(width, height, image_size)


def bytes_to_decode(image: ImageFile, content: bytes, image_size: int) -> int:
    """Return how many bytes decoding and sizing an opened image takes at most; see :func:`decoding_cost`."""
    pixels = image.width * image.height
    kept = pixels * _BYTES_OF_PIXEL.get(image.mode, 4)
    chunks = {name for name, _, _ in chunks_of_png(content)} if image.format == "PNG" else set()
    turns = _may_turn(image, content)
    decoding = kept + _decoder(image, content)
    if turns and isinstance(image, TiffImagePlugin.TiffImageFile):  # turned before its strips are released
        decoding += kept
    converts = image.mode != "RGB" or image.has_transparency_data or "icc_profile" in image.info
    after = pixels * _RESULT
    if converts or chunks & {b"tRNS", b"iCCP"}:  # Pillow also takes those behind the pixels
        after += kept + min(pixels, STRIP) * _OF_STRIP
    sizing = pixels * _RESULT + _sizing(image.width, max(image.size) if turns else image.height, image_size)
    picture = max(decoding, 2 * kept if turns else 0, after, sizing)
    return _FIXED + _metadata(image, content, turns) + picture + picture // _MARGIN


def _sizing(width: int, height: int, image_size: int) -> int:
    """Return the bytes of the first pass, which narrows or flattens the picture, of the levels and of their weights."""
    side = min(width, height) if _FLATTENS_FIRST else height
    return image_size * side * _RESULT + image_size**2 * 4 * _RESULT + (width + height) * _WEIGHTS


def _decoder(image: ImageFile, content: bytes) -> int:
    """Return the bytes that a decoder needs beside the picture it fills."""
    pixels = image.width * image.height
    needed = pixels * _DECODER.get(str(image.format), 0) + len(content) * _COPIES.get(str(image.format), 0)
    if any(tile.codec_name in INTERPRETED for tile in image.tile):
        return needed + pixels * len(image.getbands()) * _INTERPRETED_SAMPLE + _INTERPRETED
    if has_other_range(image):
        return needed + _TABLE_AND_STRIP
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        needed += image.width * _LINE_OF_JPEG
        return needed + _coefficients(image) if is_decoded_at_once(image, content) else needed
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        needed += _strip_of_tiff(image)
    if image.format == "WEBP":
        return needed + _codes_of_webp(image, content)
    if image.format == "JPEG2000":
        _, _, components, tiles = layout_of_jpeg2000(content)
        return needed + _MIB + pixels * 8 * components + tiles * (6000 + 1500 * components)
    offsets = sorted(tile.offset for tile in image.tile)  # Pillow reads from one to the next at once
    gaps = [after - before for before, after in pairwise(offsets)]
    return needed + 2 * min(max(gaps, default=0), len(content))


def _coefficients(image: JpegImagePlugin.JpegImageFile) -> int:
    """Return the bytes of all coefficients of a JPEG: 2 for each, in blocks of 8 x 8, by the sampling of each layer."""
    across, down = max(layer[1] for layer in image.layer), max(layer[2] for layer in image.layer)
    columns, rows = math.ceil(image.width / (8 * across)), math.ceil(image.height / (8 * down))
    return sum(128 * columns * layer[1] * rows * layer[2] for layer in image.layer)


def _codes_of_webp(image: ImageFile, content: bytes) -> int:
    """Return the bytes of the prefix codes that a lossless WebP, or the alpha of a lossy one, may define.

    Every 4 x 4 pixels may have five codes of their own, up to 65 536 times (a file of 290 kB took 382 MB). Five codes
    take 20 bits of the file at least, those with tables of a second level 100 and more.
    """
    if b"VP8L" not in content and b"ALPH" not in content:
        return 0
    bits = 8 * len(content)
    groups = min(2**16, math.ceil(image.width / 4) * math.ceil(image.height / 4), bits // 20)
    return groups * _CODES + min(groups, bits // 100) * _SECOND_LEVEL


def _strip_of_tiff(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return the bytes of the strip or tile that libtiff unpacks at once, and of its table of them."""
    if not image.use_load_libtiff:
        return 0
    width, height = tile_of_tiff(image)
    bits = image.tag_v2.get(258, (1,))
    samples = int(image.tag_v2.get(277, 1))
    each = math.ceil(int(max(bits if isinstance(bits, tuple) else (bits,))) / 8)
    copies = samples * each + 4  # as samples, and as RGBA
    if str(image.info.get("compression")) not in _SIMPLE:
        copies += 2 * max(samples, 4) + 4  # coefficients of JPEG, or what others need
    count = samples * math.ceil(max(image.size) / max(1, width)) * math.ceil(max(image.size) / max(1, height))
    return width * height * copies + 16 * min(count, _RESIZED)


def _may_turn(image: ImageFile, content: bytes) -> bool:
    """Return True unless it is known that the picture is upright; a PNG may say so behind its pixels."""
    if image.format == "PNG":
        return any(name == b"eXIf" or content.startswith(_EXIF, at) for name, at, _ in chunks_of_png(content))
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
    except Exception:  # the EXIF and XMP parsers raise nearly every kind of error
        return True


def _metadata(image: ImageFile, content: bytes, turns: bool) -> int:
    """Return the bytes that Pillow keeps of texts, profiles and tables."""
    exif = len(image.info.get("exif", b""))
    needed = 20 * exif if turns else 0  # its numbers become objects when it is written again without the orientation
    needed += _TEXT * sum(len(value) for value in image.info.values() if isinstance(value, str | bytes))
    if image.format == "PNG":
        for name, _, length in chunks_of_png(content):
            needed += 0 if name in (b"IDAT", b"IEND") else _TEXT * (length + 64)
            needed += _TEXT * _MIB if name in (b"zTXt", b"iTXt") else 0
            needed += 2 * _MIB if name == b"iCCP" and "icc_profile" not in image.info else 0  # it is behind the pixels
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        needed += 2 * sum(len(segment) + 128 for _, segment in image.applist)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        needed += _VALUE_OF_TIFF * values_of_tiff(content)
    return needed
