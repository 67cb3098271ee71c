"""Read images of any common kind in the same way every time, and resize them for the backbone.

Images are turned upright (EXIF), the first of several frames is taken, and :mod:`csflow.data.pixel_values` turns every
kind of pixel into 8-bit RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from csflow.config import FeatureConfig
from csflow.data.image_files import FORMATS, has_signature
from csflow.data.image_headers import (
    INTERPRETED,
    MAX_PIXELS,
    EncodedImage,
    refuse_more_data,
    refuse_size,
    refuse_tables,
)
from csflow.data.pixel_values import Samples, to_rgb
from csflow.data.portable_maps import has_other_range, read_portable_map
from csflow.errors import DataError


def read_image(
    source: Path | bytes,
    bit_depth: int | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode an image to 8-bit RGB, upright.

    Args:
        source: An image file, or the bytes of one.
        bit_depth: Bits that the line's camera fills in 16-bit samples (``features.bit_depth``).
        max_pixels: Largest number of pixels to take, for those who have less memory than :data:`MAX_PIXELS` needs.
        formats: Names of the formats to open; every other parser stays closed.

    Raises:
        DataError: If the file is missing, not an image, truncated, of an unknown kind or too large, or if its samples
            have an unknown range; it names the file.
    """
    if isinstance(source, bytes):
        name = f"image of {len(source)} bytes"
        return decode_image(source, name=name, bit_depth=bit_depth, max_pixels=max_pixels, formats=formats)
    content = _content_of(source)
    return decode_image(content, name=str(source), bit_depth=bit_depth, max_pixels=max_pixels, formats=formats)


def decode_image(
    content: bytes,
    *,
    name: str,
    bit_depth: int | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode the bytes of an image file as :func:`read_image` does; ``name`` names it in errors."""
    with opened_image(content, name, max_pixels=max_pixels, formats=formats) as image:
        samples = Samples.of(image, content)
        if has_other_range(image):
            return to_rgb(read_portable_map(image, content), samples, bit_depth, name)
        image.load()
        vars(image).pop("_decoder", None)  # those of WebP and AVIF keep their own copies of the picture
        turned = upright(image)
        if turned is not image:
            image.close()
        return to_rgb(turned, samples, bit_depth, name)


def image_of_pixels(pixels: NDArray[np.uint8], name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Make the image of 8-bit RGB pixels, as cameras and gateways send them.

    Args:
        pixels: Of shape ``(H, W, 3)`` and type uint8; they are copied.
        name: Names them in errors.
        max_pixels: See :func:`read_image`.

    Raises:
        DataError: If shape or type is another, or the picture is too large, too long or too thin.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"{name} has shape {list(pixels.shape)} and type {pixels.dtype}, expected [height, width, 3] and uint8. "
            "Send 8-bit RGB, colours last, or an encoded image."
        )
    height, width = pixels.shape[:2]
    if not (height and width):
        raise DataError(f"{name} is {width} x {height} pixels, expected at least one. Send the pixels of a picture.")
    refuse_size((width, height), name, max_pixels)
    return Image.fromarray(pixels)


@contextmanager
def opened_image(
    content: bytes, name: str, *, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Iterator[ImageFile]:
    """Open the bytes of an image file; whatever goes wrong in the block is an error that names the file.

    Only its header is read: what is too large is refused before anything is decoded.

    Raises:
        DataError: If it is not an image, of a closed format, damaged or too large.
    """
    try:
        refuse_tables(content, name)
        encoded = EncodedImage(content)
        with Image.open(encoded, formats=tuple(formats)) as image:
            refuse_size(image.size, name, max_pixels)
            refuse_more_data(image, content, name, max_pixels)
            _refuse_interpreted(image, name, formats)
            encoded.allow_pixels(image)
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: {error} Crop or shrink it.") from error
    except UnidentifiedImageError as error:
        if has_signature(content, formats):
            raise DataError(f"{name} is damaged, or an image of an unknown kind. Export it again, as PNG.") from error
        what = "is of a format that is closed here" if has_signature(content) else "is not an image"
        raise DataError(f"{name} {what if content else 'is empty'}. Expected one of {', '.join(formats)}.") from error
    except Exception as error:  # on damaged bytes Pillow's readers raise nearly every kind of error
        raise DataError(f"{name} is damaged: {error}. Copy or export it again.") from error


def size_of(file: Path) -> tuple[int, int]:
    """Return width and height of an image after EXIF rotation.

    Raises:
        DataError: If the file is missing or not an image.
    """
    content = _content_of(file)
    with opened_image(content, str(file)) as image:
        return upright(image).size


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


def upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation; one that is upright is returned as it is, not copied.

    A damaged EXIF block says nothing, and viewers ignore it.
    """
    try:
        image.load()
        turns = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        return ImageOps.exif_transpose(image) if turns else image
    except Exception:  # the EXIF and XMP parsers raise nearly every kind of error, too
        return image


def _content_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror or error}.") from error


def _refuse_interpreted(image: ImageFile, name: str, formats: Sequence[str]) -> None:
    """Refuse what Pillow decodes in Python if QOI, the format that it always decodes so, is closed."""
    if "QOI" not in formats and any(tile.codec_name in INTERPRETED for tile in image.tile):
        raise DataError(f"{name} is compressed or written in a way that takes long to decode. Export it as PNG.")
