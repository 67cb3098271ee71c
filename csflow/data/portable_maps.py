"""Read portable maps (PGM, PPM) whose largest value is not 255 or 65535, as cameras of 10 or 12 bits write them.

Pillow decodes them sample by sample in Python: 1 to 3 seconds a million pixels. Here they are decoded with NumPy, to
the same values.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

_SAMPLES = 2**17
"""Samples to decode at once; NumPy needs 20 bytes for each."""


def has_other_range(image: ImageFile) -> bool:
    """Return True for an opened portable map that Pillow would decode in Python."""
    return image.format == "PPM" and len(image.tile) == 1 and image.tile[0].codec_name == "ppm"


def read_portable_map(image: ImageFile, content: bytes) -> Image.Image:
    """Decode a portable map whose largest value is its own; 16-bit grey becomes mode I of 0 to 65535, as in Pillow.

    Raises:
        ValueError: If samples are missing.
    """
    (tile,) = image.tile
    assert isinstance(tile.args, tuple)
    largest = int(tile.args[-1])
    deep = image.mode == "I"
    white = 65535 if deep else 255
    stored = np.dtype(np.uint8 if largest < 256 else ">u2")
    shown = np.minimum(white, np.rint(np.arange(2 ** (8 * stored.itemsize)) / largest * white))
    table = shown.astype(np.int32 if deep else np.uint8)
    width, channels = image.width, len(image.getbands())
    samples = np.frombuffer(content, np.uint8, offset=tile.offset)
    needed = image.height * width * channels * stored.itemsize
    if len(samples) < needed:
        raise ValueError("not enough image data")
    rows = samples[:needed].view(stored).reshape(image.height, width, channels)
    result = Image.new(image.mode, image.size)
    count = max(1, _SAMPLES // (width * channels))
    for top in range(0, image.height, count):
        strip = table[rows[top : top + count]]
        result.paste(Image.fromarray(strip[..., 0] if channels == 1 else strip), (0, top))
    return result
