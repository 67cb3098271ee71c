"""Read images of any common kind in the same way every time, and resize them for the backbone.

=====================  ==========================================================================
Image                  Becomes 8-bit RGB by
=====================  ==========================================================================
grey, 1-bit            repeating the grey value
16-bit grey            dividing by 257 (65535 -> 255), never by the image's own range
16-bit colour          dropping the lower byte (Pillow's reader)
palette                its colours
alpha (any kind)       compositing on black
CMYK, YCbCr            Pillow's conversion, without ICC profiles
EXIF orientation       turning upright
several frames         taking the first
=====================  ==========================================================================
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from csflow.config import FeatureConfig
from csflow.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""Allowed readers of Pillow. Others can start external programs (EPS) or do not read a camera's image files."""

MAX_PIXELS = 89_478_485
"""Largest pixel count of an image (9459 squared, where Pillow begins to warn): a small file can claim terabytes."""


def read_image(source: Path | bytes) -> Image.Image:
    """Decode an image to 8-bit RGB, upright.

    Args:
        source: An image file, or the bytes of one.

    Raises:
        DataError: If the file is missing, not an image, truncated, of an unknown kind or too large; it names the file.
    """
    if isinstance(source, bytes):
        return decode_image(source, name=f"image of {len(source)} bytes")
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {source}: {error.strerror or error}.") from error
    return decode_image(content, name=str(source))


def decode_image(content: bytes, *, name: str) -> Image.Image:
    """Decode the bytes of an image file as :func:`read_image` does; ``name`` names it in errors."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_bomb(image.size, name)
            image.load()
            upright = ImageOps.exif_transpose(image)
        return _to_rgb(upright, name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error} Crop or shrink it.") from error
    except UnidentifiedImageError as error:
        what = "is empty" if not content else "is not an image"
        raise DataError(f"{name} {what}. Expected one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly every kind of error
        raise DataError(f"{name} is damaged: {error}. Copy or export it again.") from error


def to_pyramid_levels(image: Image.Image, features: FeatureConfig) -> list[NDArray[np.uint8]]:
    """Resize an image for every scale of the pyramid.

    The image is stretched to a square. ``antialias`` resizes the image for every scale (paper 4.2) with Pillow's
    bilinear filter, which widens with the factor; ``nearest`` takes every second pixel of the largest (the authors'
    code).

    Args:
        image: 8-bit RGB, as :func:`read_image` returns it.
        features: Names image size, number of scales and the way of downscaling.

    Returns:
        8-bit RGB, finest first; level ``i`` is ``(s, s, 3)`` with ``s = image_size / 2**i``.
    """
    sizes = [features.image_size // 2**scale for scale in range(features.scales)]
    if features.downscale == "antialias":
        return [_resized(image, size) for size in sizes]
    largest = _resized(image, sizes[0])
    return [largest[:: 2**scale, :: 2**scale] for scale in range(features.scales)]


def to_pyramid_inputs(
    image: Image.Image, features: FeatureConfig, mean: Sequence[float], std: Sequence[float]
) -> list[NDArray[np.float32]]:
    """Resize and normalise an image for every scale of the pyramid.

    It uses NumPy and not torch, because each decoding thread would start a team of torch's threads, and because a
    server has no torch.

    Args:
        image: 8-bit RGB, as :func:`read_image` returns it.
        features: See :func:`to_pyramid_levels`.
        mean: Mean of each colour (0 to 1) to subtract.
        std: Standard deviation of each colour to divide by.

    Returns:
        Finest first; level ``i`` is ``(3, s, s)`` with ``s = image_size / 2**i``.
    """
    factor, offset = normalisation(mean, std)
    levels = to_pyramid_levels(image, features)
    return [(level.astype(np.float32) * factor - offset).transpose(2, 0, 1) for level in levels]


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ``(factor, offset)`` of each colour: ``pixel * factor - offset`` normalises a pixel of 0 to 255."""
    deviation = np.asarray(std, np.float32)
    return np.float32(1) / (255 * deviation), np.asarray(mean, np.float32) / deviation


def _resized(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image, name)
    if image.mode == "F":
        raise DataError(f"{name} has floating-point values, whose range is unknown. Export it as 8 or 16 bit.")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale by the fixed range of 16 bit: with the image's own range, a part's look would depend on its defects."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"{name} has values from {low} to {high}, expected 16 bit (0 to 65535).")
    grey = ((values + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _refuse_bomb(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} is {width} x {height} pixels, expected at most {MAX_PIXELS} in all. Crop or shrink it."
        )
