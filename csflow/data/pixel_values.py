"""Turn the pixels of any picture into 8-bit RGB: what a person would see, or a refusal.

==============================  ==================================================================================
Picture                         Becomes 8-bit RGB by
==============================  ==================================================================================
grey, 1-bit                     repeating the grey value
more than 8 bits a sample       its upper 8 bits, never by the image's own range: a part's look would depend on its
                                defects. If nothing says how many bits the camera has, 16-bit samples that fill less
                                than a quarter of their range are refused
palette                         its colours
alpha (any kind)                compositing on black; an alpha channel of one value (camera buffers often leave it 0)
                                says nothing about the part and is ignored
CMYK, YCbCr, CIE L*a*b*         conversion to sRGB
colour profile (ICC)            conversion to sRGB; a damaged profile is ignored, as viewers do
white is zero (TIFF)            inverting
signed or floating-point        refused: what is black and what is white is unknown
==============================  ==================================================================================
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.ImageFile import ImageFile

from csflow.data.image_headers import start_of_jpeg2000
from csflow.errors import DataError

_Convert = Callable[[Image.Image], Image.Image]

STRIP = 2**18
"""Pixels of a strip: large enough to convert at full speed, small enough (a few MB) not to count."""

_WHITE = 65535
_DARK = 4
"""16-bit samples that are all below this part of their range look like the 10, 12 or 14 bits of a camera."""

_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339  # tags of TIFF
_SIGNED = 2
_MODE_OF_PROFILE = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True)
class Samples:
    """What an image file says about its samples (the numbers of a pixel).

    Attributes:
        deep: True if a sample has 16 bits of which the camera may have filled only the lower ones.
        white: The sample that is white, if the file has more than 8 bits and tells; else None.
        inverted: True if zero is white and Pillow leaves it so.
        signed: True if Pillow reads signed samples as if they were not.
        thumbnail: True if the first picture of the file is a reduced copy of another, as in raw files of cameras.
    """

    deep: bool = False
    white: int | None = None
    inverted: bool = False
    signed: bool = False
    thumbnail: bool = False

    @classmethod
    def of(cls, image: ImageFile, content: bytes) -> Samples:
        """Read what is known before the pixels are decoded; Pillow forgets it then."""
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return cls._of_tiff(image)
        if image.format == "JPEG2000":
            bits = _bits_of_jpeg2000(content)
            return cls(deep=bits == 16, white=_WHITE if 8 < bits < 16 else None)
        decoders = [(tile.codec_name, str(tile.args)) for tile in image.tile]
        if image.format == "PPM" and any(codec.startswith("ppm") for codec, _ in decoders):
            scaled = str(_WHITE) not in decoders[0][1]  # by the largest value, which the header names
            return cls(deep=not scaled, white=_WHITE if scaled else None)
        return cls(deep=any(codec == "SGI16" or ";16" in arguments for codec, arguments in decoders))

    @classmethod
    def _of_tiff(cls, image: TiffImagePlugin.TiffImageFile) -> Samples:
        bits = max(_values(image, _BITS, 1))
        return cls(
            deep=bits == 16,
            white=2**bits - 1 if 8 < bits < 16 else None,
            inverted=bits == 16 and _values(image, _PHOTOMETRIC, 1) == (0,),
            signed=bits <= 16 and _SIGNED in _values(image, _SAMPLE_FORMAT, 1),
            thumbnail=bool(_values(image, _SUBFILE, 0)[0] & 1),
        )


def to_rgb(image: Image.Image, samples: Samples, bit_depth: int | None, name: str) -> Image.Image:
    """Convert a decoded image to 8-bit RGB, in strips of rows.

    The peak of memory is the decoded image, the result and one strip; an image that needs no conversion is not copied.

    Args:
        image: Of any of Pillow's modes.
        samples: What its file says about the samples.
        bit_depth: Bits that the camera fills in 16-bit samples; None if nobody said.
        name: Names the image in errors.

    Returns:
        An image without metadata, because they describe the pixels of the file and not these.

    Raises:
        DataError: If black and white of the samples are unknown, or nothing of the picture is left.
    """
    if samples.thumbnail:
        raise DataError(f"{name} starts with a thumbnail of another picture. Export that picture alone, as PNG.")
    if samples.signed:
        raise DataError(f"{name} has signed samples, whose black and white are unknown. Export it as unsigned.")
    if image.mode == "F":
        raise DataError(f"{name} has floating-point values, whose range is unknown. Export it as 8 or 16 bit.")
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        return _in_srgb(image, "L", profile, _upper_bits(image, samples, bit_depth, name))
    if samples.deep and bit_depth != 16:
        _refuse_dark(256 * (_brightest(image) + 1) - 1, name)
    if image.mode == "LAB":
        return _converted(image, _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"))
    if image.has_transparency_data:
        return _in_srgb(image, "RGB", profile, _without_alpha(image, name))
    return _in_srgb(image, image.mode, profile)


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image in strips of rows, from the top."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _converted(image: Image.Image, *steps: _Convert) -> Image.Image:
    """Convert an image to RGB strip by strip; every step takes the strip that the one before gave."""
    result = Image.new("RGB", image.size)
    top = 0
    for strip in strips(image):
        for step in steps:
            strip = step(strip)
        result.paste(strip, (0, top))
        top += strip.height
    return result


def _upper_bits(image: Image.Image, samples: Samples, bit_depth: int | None, name: str) -> _Convert:
    """Reduce deep grey values to 8 bits by the range of the camera."""
    ranges = [(int(values.min()), int(values.max())) for values in map(np.asarray, strips(image))]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    white = samples.white or 2 ** (bit_depth or 16) - 1
    if low < 0 or high > white:
        given = "16 bit" if white == _WHITE else f"{white.bit_length()} bit"
        raise DataError(f"{name} has values from {low} to {high}, expected {given} (0 to {white}).{_MEND_DEPTH}")
    if samples.white is None and bit_depth is None:
        _refuse_dark(high, name)
    shift = white.bit_length() - 8

    def reduced(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip)
        return Image.fromarray(((white - values if samples.inverted else values) >> shift).astype(np.uint8))

    return reduced


_MEND_DEPTH = " Set features.bit_depth of the line to the bits of the camera, or export the image again."


def _refuse_dark(brightest: int, name: str) -> None:
    """Refuse 16-bit samples that are probably the fewer bits of a camera: only a few grey levels would be left."""
    if brightest < (_WHITE + 1) // _DARK:
        raise DataError(
            f"{name} has 16-bit samples of at most {brightest}, which is nearly black; a camera of 10, 12 or 14 bits "
            f"writes such files. Set features.bit_depth of the line to its bits, or to 16 if the picture is that dark."
        )


def _brightest(image: Image.Image) -> int:
    """Return the largest value of all channels but alpha."""
    channels = len(image.getbands()) - (image.mode in _ALPHA)
    return max(high for strip in strips(image) for _, high in _ranges(strip)[:channels])


def _ranges(image: Image.Image) -> list[tuple[int, int]]:
    """Return the smallest and the largest value of each channel."""
    return [(int(low), int(high)) for low, high in (band.getextrema() for band in image.split())]  # type: ignore[arg-type]


def _without_alpha(image: Image.Image, name: str) -> _Convert:
    """Composite on black, or ignore an alpha channel of one value."""
    found: list[tuple[int, int]] = []
    for strip in strips(image):
        ranges = _ranges(_rgba(strip))
        found = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(found or ranges, ranges, strict=True)]
        if found[-1][0] != found[-1][1]:
            return _on_black
    if found[-1][1] == 0 and all(low == high for low, high in found):
        raise DataError(f"{name} is fully transparent and has no colours left. Export it without transparency.")
    return lambda strip: _rgba(strip).convert("RGB")


def _rgba(strip: Image.Image) -> Image.Image:
    return (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")


def _on_black(strip: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), _rgba(strip)).convert("RGB")


def _in_srgb(image: Image.Image, mode: str, profile: bytes | None, *steps: _Convert) -> Image.Image:
    """Convert to sRGB, by the colour profile if there is a usable one that is not sRGB.

    Args:
        image: The decoded image.
        mode: Its mode after the steps.
        profile: The colour profile of its file.
        steps: Conversions of a strip to do first.
    """
    if profile and (by_profile := _by_profile(profile, mode)):
        try:
            return _converted(image, *steps, *by_profile)
        except ImageCms.PyCMSError:
            pass
    if image.mode == "RGB" and not steps:
        plain = image._new(image.im)  # copies nothing, and nothing public does so
        plain.info = {}
        return plain
    return _converted(image, *steps, lambda strip: strip.convert("RGB"))


def _by_profile(profile: bytes, mode: str) -> tuple[_Convert, _Convert] | None:
    """Return what converts strips of a mode by a colour profile; None if it is sRGB, damaged or for other channels."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        taken = _MODE_OF_PROFILE.get(given.profile.xcolor_space)
        standard = "srgb" in (given.profile.profile_description or "").lower()
        if standard or taken is None or (taken == "CMYK") != (mode == "CMYK"):
            return None
        return (lambda strip: strip.convert(taken)), _transform(given, taken)
    except (OSError, ImageCms.PyCMSError):
        return None


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> _Convert:
    """Return what converts strips from a colour profile to sRGB."""
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.buildTransform(profile, standard, mode, "RGB")

    def transformed(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip, transform)
        assert converted is not None  # only an image converted in place is not returned
        return converted

    return transformed


def _values(image: TiffImagePlugin.TiffImageFile, tag: int, default: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, default)
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _bits_of_jpeg2000(content: bytes) -> int:
    """Read the bits of the first component from the marker SIZ (ISO/IEC 15444-1, A.5.1); 8 if there is none."""
    start = start_of_jpeg2000(content)
    precision = content[start + 42 : start + 43]
    return (precision[0] & 0x7F) + 1 if start >= 0 and precision else 8
