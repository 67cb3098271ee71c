"""The oracle of decoding: whole pictures at once, without a thought for memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

from csflow.data.image_files import FORMATS
from csflow.data.pixel_values import Samples

MODE_OF_PROFILE = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def plainly_decoded(content: bytes, bit_depth: int | None = None) -> Image.Image:
    """Decode a picture that is accepted to 8-bit RGB, upright."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        samples = Samples.of(image, content)
        image.load()
        return _to_rgb(_upright(image), samples, bit_depth)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image, samples: Samples, bit_depth: int | None) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        return _in_srgb(_upper_bits(image, samples, bit_depth), profile)
    if image.mode == "LAB":
        return _transformed(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return _in_srgb(_without_alpha(image), profile)


def _upper_bits(image: Image.Image, samples: Samples, bit_depth: int | None) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    white = samples.white or 2 ** (bit_depth or 16) - 1
    if samples.inverted:
        values = white - values
    return Image.fromarray((values >> (white.bit_length() - 8)).astype(np.uint8))


def _without_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    lowest, highest = rgba.getchannel("A").getextrema()
    if lowest == highest:
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile:
        return image.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")
    mode = MODE_OF_PROFILE.get(given.profile.xcolor_space)
    standard = "srgb" in (given.profile.profile_description or "").lower()
    if standard or mode is None or (mode == "CMYK") != (image.mode == "CMYK"):
        return image.convert("RGB")
    try:
        return _transformed(image.convert(mode), given)
    except ImageCms.PyCMSError:
        return image.convert("RGB")


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    converted = ImageCms.profileToProfile(image, profile, standard, outputMode="RGB")
    assert converted is not None
    return converted
