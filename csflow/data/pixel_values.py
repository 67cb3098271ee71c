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
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.ImageFile import ImageFile

from csflow.errors import DataError

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
    """Convert a decoded image to 8-bit RGB.

    Args:
        image: Of any of Pillow's modes.
        samples: What its file says about the samples.
        bit_depth: Bits that the camera fills in 16-bit samples; None if nobody said.
        name: Names the image in errors.

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
        return _in_srgb(_upper_bits(image, samples, bit_depth, name), profile)
    if samples.deep and bit_depth != 16:
        _refuse_dark(256 * (_brightest(image) + 1) - 1, name)
    if image.mode == "LAB":
        return _transformed(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return _in_srgb(_without_alpha(image, name), profile)


def _upper_bits(image: Image.Image, samples: Samples, bit_depth: int | None, name: str) -> Image.Image:
    """Reduce deep grey values to 8 bits by the range of the camera."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    white = samples.white or 2 ** (bit_depth or 16) - 1
    if low < 0 or high > white:
        given = "16 bit" if white == _WHITE else f"{white.bit_length()} bit"
        raise DataError(f"{name} has values from {low} to {high}, expected {given} (0 to {white}).{_MEND_DEPTH}")
    if samples.white is None and bit_depth is None:
        _refuse_dark(high, name)
    if samples.inverted:
        values = white - values
    return Image.fromarray((values >> (white.bit_length() - 8)).astype(np.uint8))


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
    channels = image.split()[:-1] if image.mode in _ALPHA else image.split()
    return max(int(channel.getextrema()[1]) for channel in channels)  # type: ignore[arg-type]


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    lowest, highest = rgba.getchannel("A").getextrema()
    if lowest == highest:
        colours = rgba.convert("RGB")
        if highest == 0 and all(low == high for low, high in colours.getextrema()):  # type: ignore[misc]
            raise DataError(f"{name} is fully transparent and has no colours left. Export it without transparency.")
        return colours
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB, by the colour profile if the image has a usable one that is not sRGB."""
    if not profile:
        return image.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODE_OF_PROFILE.get(given.profile.xcolor_space)
        standard = "srgb" in (given.profile.profile_description or "").lower()
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")
    if standard or mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
        return image.convert("RGB")
    try:
        return _transformed(image.convert(mode), given)
    except ImageCms.PyCMSError:
        return image.convert("RGB")


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert from a colour profile to sRGB."""
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, profile, standard, outputMode="RGB")
    assert converted is not None  # only an image converted in place is not returned
    return converted


def _values(image: TiffImagePlugin.TiffImageFile, tag: int, default: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, default)
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _bits_of_jpeg2000(content: bytes) -> int:
    """Read the bits of the first component from the marker SIZ (ISO/IEC 15444-1, A.5.1); 8 if there is none."""
    start = content.find(b"\xff\x4f\xff\x51")
    precision = content[start + 42 : start + 43]
    return (precision[0] & 0x7F) + 1 if start >= 0 and precision else 8
