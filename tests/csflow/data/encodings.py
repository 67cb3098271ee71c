"""One picture in every encoding that a camera or a converter might write, and encodings that must be refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SIDE = 96


class Encoding(NamedTuple):
    """A picture as a file.

    Attributes:
        name: Container, mode and what is special.
        suffix: Suffix of the file, '' for none.
        content: The bytes of the file.
        tolerance: Mean absolute difference of the 8-bit values that the codec may cause.
        colour: True if the picture is the coloured one, False for the grey one.
    """

    name: str
    suffix: str
    content: bytes
    tolerance: float = 0.0
    colour: bool = False


def texture(seed: int = 0) -> NDArray[np.uint8]:
    """A smooth coloured texture ``(SIDE, SIDE, 3)`` that uses the whole range of 8 bits."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).copy()
    picture[:8, :8], picture[-8:, -8:] = 0, 255
    return picture


def grey(seed: int = 0) -> NDArray[np.uint8]:
    """The green channel of :func:`texture` ``(SIDE, SIDE)``."""
    return np.ascontiguousarray(texture(seed)[..., 1])


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of unfiltered rows; ``colour`` is the type of IHDR: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(pixels: bytes, width: int, height: int, *, order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of one strip; tags are given as ``t258=16`` (numbers of TIFF 6.0), all of type SHORT."""
    given: dict[int, tuple[int, ...]] = {256: (width,), 257: (height,), 259: (1,), 262: (1,), 277: (1,), 278: (height,)}
    for name, value in tags.items():
        given[int(name[1:])] = value if isinstance(value, tuple) else (value,)
    given[273], given[279] = (0,), (len(pixels),)
    count = len(given)
    extra_at = 8 + 2 + 12 * count + 4
    extra = b""
    entries = []
    pixels_at = extra_at + sum(2 * len(value) for value in given.values() if len(value) > 2)
    given[273] = (pixels_at,)
    for tag, value in sorted(given.items()):
        kind, code = ("I", 4) if tag in (273, 279) else ("H", 3)
        packed = struct.pack(order + kind * len(value), *value)
        if len(packed) > 4:
            entries.append(struct.pack(order + "HHII", tag, code, len(value), extra_at + len(extra)))
            extra += packed
        else:
            entries.append(struct.pack(order + "HHI", tag, code, len(value)) + packed.ljust(4, b"\0"))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", count) + b"".join(entries) + struct.pack(order + "I", 0) + extra + pixels


def same_picture() -> Iterator[Encoding]:
    """Yield encodings that a person sees as the same picture."""
    yield from _eight_bits()
    yield from _sixteen_bits()
    yield from _alpha()
    yield from _colour_spaces()
    yield from _tags()


def deep_grey(bits: int) -> Iterator[Encoding]:
    """Yield the grey picture as a camera of 10, 12 or 14 bits writes it: in the lower bits of 16."""
    low = grey().astype(np.uint16) << (bits - 8)
    yield Encoding(f"png 16, {bits} used", ".png", encoded(Image.fromarray(low), "PNG"))
    yield Encoding(f"tiff 16, {bits} used", ".tif", encoded(Image.fromarray(low), "TIFF"))
    yield Encoding(f"tiff 16 big-endian, {bits} used", ".tif", _tiff16(low, order=">"))
    yield Encoding(f"tiff 32, {bits} used", ".tif", encoded(Image.fromarray(low.astype(np.int32)), "TIFF"))
    yield Encoding(f"pgm 16, {bits} used", ".pgm", _pgm(low, 65535))
    yield Encoding(f"jp2 16, {bits} used", ".jp2", encoded(Image.fromarray(low), "JPEG2000"))


def refused() -> Iterator[tuple[Encoding, str]]:
    """Yield encodings whose picture is unknown, with the words of the refusal."""
    for bits in (10, 12, 14):
        for encoding in deep_grey(bits):
            yield encoding, "features.bit_depth"
    values = grey().astype(np.uint16)
    deep = (values << 4).astype(">u2")
    yield Encoding("png RGB 16, 12 used", ".png", png(SIDE, SIDE, 16, 2, _repeat(deep, 3))), "features.bit_depth"
    yield Encoding("png LA 16, 12 used", ".png", png(SIDE, SIDE, 16, 4, _with_alpha(deep))), "features.bit_depth"
    yield Encoding("ppm 16, 12 used", ".ppm", _ppm(values << 4, 65535)), "features.bit_depth"
    yield (
        Encoding("tiff signed 16", ".tif", tiff(values.astype("<i2").tobytes(), SIDE, SIDE, t258=16, t339=2)),
        "signed",
    )
    yield Encoding("tiff signed 8", ".tif", tiff(grey().tobytes(), SIDE, SIDE, t258=8, t339=2)), "signed"
    inverted = _tiff16(65535 - values * 257, order=">", t262=0)
    yield Encoding("tiff 16 white is zero, big-endian", ".tif", inverted), "unknown kind"
    thumbnail = tiff(grey().tobytes(), SIDE, SIDE, t254=1, t258=8)
    yield Encoding("tiff that starts with a thumbnail", ".tif", thumbnail), "thumbnail"
    yield Encoding("tiff float", ".tif", encoded(Image.fromarray(grey().astype(np.float32)), "TIFF")), "floating-point"
    yield Encoding("pfm", ".pfm", encoded(Image.fromarray(grey().astype(np.float32)), "PPM")), "floating-point"
    big = Image.fromarray(grey().astype(np.int32) << 16)
    yield Encoding("tiff 32, beyond 16 bit", ".tif", encoded(big, "TIFF")), "expected 16 bit"
    clear = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    yield Encoding("png, nothing but transparency", ".png", encoded(clear, "PNG")), "fully transparent"
    five = tiff(_repeat(grey(), 5), SIDE, SIDE, t258=(8,) * 5, t277=5)
    yield Encoding("tiff of five channels", ".tif", five), "unknown kind"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n"
    yield Encoding("eps", ".png", eps), "is not an image"
    yield Encoding("text", ".png", b"BM is how a bitmap starts, and this is none"), "damaged"


def _eight_bits() -> Iterator[Encoding]:
    colour, single = Image.fromarray(texture()), Image.fromarray(grey())
    for kind, suffix in (("PNG", ".png"), ("BMP", ".bmp"), ("DIB", ".dib"), ("TIFF", ".tif"), ("PPM", ".ppm"),
                         ("TGA", ".tga"), ("PCX", ".pcx"), ("SGI", ".sgi"), ("QOI", ".qoi")):  # fmt: skip
        yield Encoding(f"{kind} RGB", suffix, encoded(colour, kind), colour=True)
        if kind != "QOI":
            yield Encoding(f"{kind} L", suffix, encoded(single, kind))
    yield Encoding("JPEG2000 RGB", ".jp2", encoded(colour, "JPEG2000"), 1.0, colour=True)
    yield Encoding("JPEG2000 L", ".j2k", encoded(single, "JPEG2000", no_jp2=True))
    yield Encoding("WEBP lossless", ".webp", encoded(colour, "WEBP", lossless=True), colour=True)
    yield Encoding("WEBP lossy", ".webp", encoded(colour, "WEBP", quality=95), 3.0, colour=True)
    yield Encoding("JPEG RGB", ".jpg", encoded(colour, "JPEG", quality=95, subsampling=0), 2.0, colour=True)
    yield Encoding("JPEG L", ".jfif", encoded(single, "JPEG", quality=95), 2.0)
    yield Encoding("JPEG progressive", ".jpe", encoded(single, "JPEG", quality=95, progressive=True), 2.0)
    yield Encoding("AVIF", ".avif", encoded(colour, "AVIF", quality=95, subsampling="4:4:4"), 3.0, colour=True)
    yield Encoding("GIF L", ".gif", encoded(single, "GIF"))
    yield Encoding("PNG palette of greys", ".png", encoded(single.convert("P"), "PNG"))
    yield Encoding("TIFF palette of greys", ".tiff", encoded(single.convert("P"), "TIFF"))
    yield Encoding("TIFF LZW", ".tif", encoded(colour, "TIFF", compression="tiff_lzw"), colour=True)
    yield Encoding("TIFF JPEG", ".tif", encoded(single, "TIFF", compression="jpeg", quality=95), 2.0)
    yield Encoding("TIFF white is zero", ".tif", tiff((255 - grey()).tobytes(), SIDE, SIDE, t258=8, t262=0))
    yield Encoding("TIFF big-endian", ".tif", tiff(grey().tobytes(), SIDE, SIDE, order=">", t258=8))
    content = encoded(single.convert("RGB"), "MPO", save_all=True, append_images=[single], quality=95)
    yield Encoding("MPO", ".mpo", content, 3.0)
    yield Encoding("PNG without suffix", "", encoded(colour, "PNG"), colour=True)
    yield Encoding("TIFF of an unknown suffix", ".cam", encoded(single, "TIFF"))


def _sixteen_bits() -> Iterator[Encoding]:
    single, colour = grey().astype(np.uint16), texture().astype(np.uint16)
    for word, full in (("repeated", single * 257), ("shifted", single << 8)):
        yield Encoding(f"png 16 {word}", ".png", encoded(Image.fromarray(full), "PNG"))
        yield Encoding(f"tiff 16 {word}", ".tif", encoded(Image.fromarray(full), "TIFF"))
        yield Encoding(f"tiff 16 big-endian {word}", ".tif", _tiff16(full, order=">"))
        yield Encoding(f"tiff 32 {word}", ".tif", encoded(Image.fromarray(full.astype(np.int32)), "TIFF"))
        yield Encoding(f"jp2 16 {word}", ".jp2", encoded(Image.fromarray(full), "JPEG2000"))
        yield Encoding(f"pgm 16 {word}", ".pgm", _pgm(full, 65535))
    inverted = 65535 - single * 257
    yield Encoding("tiff 16 white is zero", ".tif", _tiff16(inverted, t262=0))
    yield Encoding("pgm of 12 bits", ".pgm", _pgm(single << 4, 4095))
    yield Encoding("pgm of 10 bits", ".pgm", _pgm(single << 2, 1023))
    yield Encoding("tiff of 12 bits", ".tif", tiff(_twelve_bits(single << 4), SIDE, SIDE, t258=12))
    yield Encoding("png RGB 16", ".png", png(SIDE, SIDE, 16, 2, (colour * 257).astype(">u2").tobytes()), colour=True)
    yield Encoding("png LA 16", ".png", png(SIDE, SIDE, 16, 4, _with_alpha((single * 257).astype(">u2"))))
    yield Encoding("tiff RGB 16", ".tif", tiff((colour * 257).astype("<u2").tobytes(), SIDE, SIDE, t258=(16, 16, 16),
                   t262=2, t277=3), colour=True)  # fmt: skip
    yield Encoding("ppm RGB 16", ".ppm", _ppm(single * 257, 65535))


def _alpha() -> Iterator[Encoding]:
    colour, single = Image.fromarray(texture()), Image.fromarray(grey())
    for value in (0, 1, 128, 255):
        rgba, la = colour.convert("RGBA"), single.convert("LA")
        rgba.putalpha(value)
        la.putalpha(value)
        yield Encoding(f"png alpha {value}", ".png", encoded(rgba, "PNG"), colour=True)
        yield Encoding(f"png grey alpha {value}", ".png", encoded(la, "PNG"))
        yield Encoding(f"tiff alpha {value}", ".tif", encoded(rgba, "TIFF"), colour=True)
        yield Encoding(f"tga alpha {value}", ".tga", encoded(rgba, "TGA"), colour=True)
        webp = encoded(rgba, "WEBP", lossless=True, exact=True)
        yield Encoding(f"webp alpha {value}", ".webp", webp, colour=True)
    palette = single.convert("P")
    yield Encoding("png palette, all transparent", ".png", encoded(palette, "PNG", transparency=bytes(256)))
    pa = palette.convert("PA")
    pa.putalpha(0)
    yield Encoding("tiff palette and alpha 0", ".tif", encoded(pa, "TIFF"))
    yield Encoding("tiff RGBX", ".tif", encoded(colour.convert("RGBX"), "TIFF"), colour=True)
    premultiplied = np.dstack([texture() // 2, np.full((SIDE, SIDE), 128, np.uint8)])
    content = tiff(premultiplied.tobytes(), SIDE, SIDE, t258=(8,) * 4, t262=2, t277=4, t338=1)
    yield Encoding("tiff premultiplied", ".tif", content, 1.5, colour=True)


def _colour_spaces() -> Iterator[Encoding]:
    colour = Image.fromarray(texture())
    standard, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(colour, standard, lab, outputMode="LAB")
    assert converted is not None
    yield Encoding("tiff LAB", ".tif", encoded(converted, "TIFF"), 2.0, colour=True)
    yield Encoding("tiff YCbCr", ".tif", encoded(colour.convert("YCbCr"), "TIFF"), 2.0, colour=True)
    yield Encoding("tiff CMYK", ".tif", encoded(colour.convert("CMYK"), "TIFF"), colour=True)
    yield Encoding(
        "jpeg CMYK", ".jpg", encoded(colour.convert("CMYK"), "JPEG", quality=98, subsampling=0), 2.0, colour=True
    )
    profile = ImageCms.ImageCmsProfile(standard).tobytes()
    yield Encoding("png with sRGB profile", ".png", encoded(colour, "PNG", icc_profile=profile), colour=True)
    swapped = Image.fromarray(np.ascontiguousarray(texture()[..., [1, 2, 0]]))
    yield Encoding("png, channels named by its profile", ".png", encoded(swapped, "PNG", icc_profile=rotated_profile()),
                   3.0, colour=True)  # fmt: skip
    yield Encoding("png with a damaged profile", ".png", encoded(colour, "PNG", icc_profile=b"none"), colour=True)
    yield Encoding(
        "grey png with a colour profile", ".png", encoded(Image.fromarray(grey()), "PNG", icc_profile=profile)
    )


def _tags() -> Iterator[Encoding]:
    colour = Image.fromarray(texture())
    turned = colour.transpose(Image.Transpose.ROTATE_90)
    for kind, suffix, options, tolerance in (
        ("JPEG", ".jpg", {"quality": 95, "subsampling": 0}, 2.0),
        ("PNG", ".png", {}, 0.0),
        ("WEBP", ".webp", {"lossless": True}, 0.0),
        ("TIFF", ".tif", {}, 0.0),
        ("AVIF", ".avif", {"quality": 95, "subsampling": "4:4:4"}, 3.0),
    ):
        content = encoded(turned, kind, exif=_on_its_side(), **options)
        yield Encoding(f"{kind} on its side", suffix, content, tolerance, colour=True)
    content = encoded(colour, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    yield Encoding("JPEG with damaged EXIF", ".jpg", content, 2.0, colour=True)
    deep = Image.fromarray(np.rot90(grey()).astype(np.uint16) * 257)
    yield Encoding("png 16 on its side", ".png", encoded(deep, "PNG", exif=_on_its_side()))
    both = encoded(colour, "TIFF", save_all=True, append_images=[turned])
    yield Encoding("tiff of two pages", ".tif", both, colour=True)
    moving = encoded(colour, "WEBP", save_all=True, append_images=[turned], lossless=True)
    yield Encoding("moving webp", ".webp", moving, colour=True)
    yield Encoding("apng", ".apng", encoded(colour, "PNG", save_all=True, append_images=[turned]), colour=True)


def _on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def rotated_profile() -> bytes:
    """An RGB profile whose channels are green, blue and red: sRGB with its columns exchanged."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", content, 128)[0]
    entries = {bytes(content[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    wanted = {b"rXYZ": b"gXYZ", b"gXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    where = {tag: bytes(content[at + 4 : at + 12]) for tag, at in entries.items()}
    for tag, source in wanted.items():
        content[entries[tag] + 4 : entries[tag] + 12] = where[source]
    described, size = struct.unpack(">II", where[b"desc"])
    text = bytes(content[described : described + size])
    for word in ("sRGB built-in", "sRGB"):
        for encoding in ("utf-16-be", "ascii"):
            text = text.replace(word.encode(encoding), ("x" * len(word)).encode(encoding))
    content[described : described + size] = text
    return bytes(content)


def _tiff16(values: NDArray[np.uint16], *, order: str = "<", **tags: int) -> bytes:
    return tiff(values.astype(f"{order}u2").tobytes(), SIDE, SIDE, order=order, t258=16, **tags)


def _pgm(values: NDArray[np.uint16], largest: int) -> bytes:
    return f"P5 {SIDE} {SIDE} {largest}\n".encode() + values.astype(">u2").tobytes()


def _ppm(values: NDArray[np.uint16], largest: int) -> bytes:
    return f"P6 {SIDE} {SIDE} {largest}\n".encode() + _repeat(values.astype(">u2"), 3)


def _repeat(values: NDArray[np.generic], channels: int) -> bytes:
    return np.repeat(values[..., None], channels, axis=2).tobytes()


def _with_alpha(values: NDArray[np.generic]) -> bytes:
    full = np.iinfo(values.dtype).max
    return np.stack([values, np.full_like(values, full)], axis=2).astype(values.dtype).tobytes()


def _twelve_bits(values: NDArray[np.uint16]) -> bytes:
    """Pack pairs of 12-bit samples into three bytes, as TIFF does."""
    first, second = values.reshape(-1, 2).T.astype(np.uint32)
    packed = first << 12 | second
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8).tobytes()


def webp_of_many_codes(side: int) -> bytes:
    """A black lossless WebP whose every 4 x 4 pixels have prefix codes of their own (RFC 9649, 3.7)."""
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> place & 1 for place in range(count))

    def code_of_one_symbol() -> None:
        put(0b0001, 4)

    def code_of_256_symbols(others: int) -> None:
        put(0, 1)
        put(12 - 4, 4)
        for length in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8):
            put(length == 8 or (length == 18 and others > 0), 3)
        put(0, 1)
        if others:  # 256 lengths of 8, then zeros
            put(0, 256)
            put(1, 1)
            put(others - 11, 7)

    put(0x2F, 8)
    put(side - 1, 14)
    put(side - 1, 14)
    put(0, 1 + 3 + 1 + 1)  # no alpha, version 0, no transform, no cache of colours
    put(1, 1)
    put(0, 3 + 1)  # codes by blocks of 4 x 4; the picture of their numbers has no cache
    code_of_256_symbols(24)
    code_of_256_symbols(0)
    for _ in range(3):
        code_of_one_symbol()
    blocks = (-(-side // 4)) ** 2
    for number in range(blocks):
        for byte in (number & 255, number >> 8 & 255):
            put(int(f"{byte:08b}"[::-1], 2), 8)
    for _ in range(5 * min(2**16, blocks)):
        code_of_one_symbol()
    data = np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes() + bytes(16)
    data += bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data
