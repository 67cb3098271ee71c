"""Decoding in strips gives the pixels of decoding at once, to the last bit."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms

from csflow.data import pixel_values
from csflow.data.images import read_image
from csflow.errors import DataError
from tests.csflow.data.encodings import SIDE, Encoding, deep_grey, encoded, rotated_profile, same_picture, texture
from tests.csflow.data.plain_way import plainly_decoded


def cases() -> Iterator[tuple[Encoding, int | None]]:
    for encoding in (*same_picture(), *others()):
        yield encoding, None
    for bits in (10, 12, 14):
        for encoding in deep_grey(bits):
            yield encoding, bits


def others() -> Iterator[Encoding]:
    """Yield what depends on more than its own strip, such as alpha that varies in the last row alone."""
    colour = Image.fromarray(texture())
    grey = colour.getchannel(1)
    varied = Image.fromarray(texture(1)[..., 0])
    late = Image.new("L", colour.size, 9)
    late.putpixel((SIDE - 1, SIDE - 1), 200)
    for word, alpha in (("varied", varied), ("constant but for the last pixel", late)):
        for image in (colour.copy(), grey.copy()):
            image.putalpha(alpha)
            for kind in ("PNG", "TIFF"):
                yield Encoding(f"{kind} {image.mode}, alpha {word}", "", encoded(image, kind))
                name = f"{kind} {image.mode} with a profile, alpha {word}"
                yield Encoding(name, "", encoded(image, kind, icc_profile=rotated_profile()))
    palette = colour.quantize(200)
    yield Encoding("PNG P", "", encoded(palette, "PNG"))
    yield Encoding("PNG P, transparent entries", "", encoded(palette, "PNG", transparency=bytes(range(200))))
    yield Encoding("PNG P with a profile", "", encoded(palette, "PNG", icc_profile=rotated_profile()))
    yield Encoding("PNG, one transparent colour", "", encoded(colour, "PNG", transparency=(0, 0, 0)))
    yield Encoding("PNG L, one transparent grey", "", encoded(grey, "PNG", transparency=0))
    yield Encoding("PNG 1", "", encoded(grey.convert("1"), "PNG"))
    yield Encoding("GIF, transparent", "", encoded(palette, "GIF", transparency=3))
    cmyk = colour.convert("CMYK")
    for profile in (b"none", rotated_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()):
        yield Encoding("TIFF CMYK with a profile that does not fit", "", encoded(cmyk, "TIFF", icc_profile=profile))
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for image in (colour.crop((0, 0, 90, 50)), palette.crop((0, 0, 90, 50))):
            yield Encoding(f"PNG {image.mode} turned by {orientation}", "", encoded(image, "PNG", exif=exif))
        yield Encoding(f"TIFF turned by {orientation}", "", encoded(colour.crop((0, 0, 90, 50)), "TIFF", exif=exif))


CASES = list(cases())


@pytest.mark.parametrize("rows", [1, 7, SIDE])
def test_strips_give_the_pixels_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_values, "STRIP", rows * SIDE)
    for encoding, bits in CASES:
        found = read_image(encoding.content, bits)
        expected = plainly_decoded(encoding.content, bits)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=encoding.name)


def test_an_unusable_profile_is_found_in_the_first_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A colour conversion that fails leaves no strips of two kinds."""
    monkeypatch.setattr(pixel_values, "STRIP", 7 * SIDE)
    content = encoded(Image.fromarray(texture()), "PNG", icc_profile=rotated_profile())
    calls = iter(range(100))

    def fails_later(strip: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
        if next(calls) == 3:
            raise ImageCms.PyCMSError("cannot")
        return strip

    monkeypatch.setattr(ImageCms, "applyTransform", fails_later)
    np.testing.assert_array_equal(np.asarray(read_image(content)), texture())


@pytest.mark.parametrize("strip", [SIDE, 7 * SIDE, SIDE * SIDE])
def test_refusals_regard_the_whole_picture(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_values, "STRIP", strip)
    clear = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    with pytest.raises(DataError, match="fully transparent"):
        read_image(encoded(clear, "PNG"))
    clear.putpixel((SIDE - 1, SIDE - 1), (1, 0, 0, 0))
    assert read_image(encoded(clear, "PNG")).getpixel((SIDE - 1, SIDE - 1)) == (1, 0, 0)
    deep = np.full((SIDE, SIDE), 4000, np.uint16)
    with pytest.raises(DataError, match="16-bit samples of at most 4000"):
        read_image(encoded(Image.fromarray(deep), "PNG"))
    deep[-1, -1] = 5000
    with pytest.raises(DataError, match="values from 4000 to 5000, expected 12 bit"):
        read_image(encoded(Image.fromarray(deep), "PNG"), 12)


@pytest.mark.parametrize("magic", [b"P5", b"P6"])
@pytest.mark.parametrize("largest", [1, 100, 254, 256, 1000, 4095, 65534])
def test_portable_maps_have_the_pixels_that_pillow_gives(magic: bytes, largest: int) -> None:
    """Also values above the largest, which Pillow takes as white."""
    channels = 3 if magic == b"P6" else 1
    kind = np.dtype("u1" if largest < 256 else ">u2")
    values = np.random.default_rng(largest).integers(0, min(largest + 9, 2 ** (8 * kind.itemsize)), (50, 31, channels))
    content = magic + b" 31 50 # camera\n %d\n" % largest + values.astype(kind).tobytes()
    found = np.asarray(read_image(content, 16))
    np.testing.assert_array_equal(found, np.asarray(plainly_decoded(content, 16)))
    with pytest.raises(DataError, match="is damaged: not enough image data"):
        read_image(content[:-1], 16)


def test_no_metadata_of_the_file_are_left() -> None:
    """They describe the pixels of the file: a profile that was applied must not be applied again."""
    content = io.BytesIO()
    Image.fromarray(texture()).save(content, "PNG", dpi=(300, 300), icc_profile=rotated_profile())
    assert read_image(content.getvalue()).info == {}
    plain = read_image(encoded(Image.fromarray(texture()), "PNG", dpi=(300, 300)))
    assert plain.info == {}
    plain.putpixel((0, 0), (1, 2, 3))
    assert plain.getpixel((0, 0)) == (1, 2, 3)
