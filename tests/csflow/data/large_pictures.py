"""Pictures of every kind that takes another amount of memory, and hostile ones that take more than their pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.csflow.data.encodings import encoded, png, rotated_profile, tiff, webp_of_many_codes

WIDTH, HEIGHT = 1600, 1250
FAST = {"compress_level": 1, "method": 0, "speed": 10}


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(picture(*image.size).getchannel(0))
    return image


def pictures() -> Iterator[tuple[str, bytes]]:
    """Yield pictures of 2 million pixels in every format and mode that takes another amount of memory."""
    colour = picture()
    grey = colour.getchannel(1)
    deep = np.asarray(grey).astype(np.uint16) * 257
    for kind in ("PNG", "JPEG", "BMP", "DIB", "TIFF", "PPM", "TGA", "PCX", "SGI", "JPEG2000"):
        yield f"{kind} RGB", encoded(colour, kind, **FAST)
        yield f"{kind} L", encoded(grey, kind, **FAST)
    yield "PNG 1", encoded(grey.convert("1"), "PNG")
    yield "PNG P", encoded(grey.convert("P"), "PNG")
    yield "PNG P, transparent", encoded(grey.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "PNG RGB, transparent colour", encoded(colour, "PNG", transparency=(1, 2, 3), **FAST)
    for kind in ("PNG", "TIFF", "TGA", "WEBP"):
        yield f"{kind} RGBA", encoded(with_alpha(colour), kind, **FAST)
    yield "PNG RGBA, opaque", encoded(colour.convert("RGBA"), "PNG", **FAST)
    yield "PNG LA", encoded(with_alpha(grey), "PNG", **FAST)
    yield "PNG 16", encoded(Image.fromarray(deep), "PNG")
    wide = np.repeat(deep[..., None], 3, axis=2)
    yield "PNG RGB 16", png(WIDTH, HEIGHT, 16, 2, wide.astype(">u2").tobytes())
    yield "PNG ICC", encoded(colour, "PNG", icc_profile=rotated_profile(), **FAST)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        yield f"{kind}, turned", encoded(colour, kind, exif=turned(), **FAST)
    yield "JPEG progressive", encoded(colour, "JPEG", progressive=True, subsampling=0)
    yield "JPEG progressive 4:2:0", encoded(colour, "JPEG", progressive=True, subsampling=2)
    yield "JPEG CMYK", encoded(colour.convert("CMYK"), "JPEG")
    yield "JPEG ICC", encoded(colour, "JPEG", icc_profile=rotated_profile())
    yield "TIFF 16", encoded(Image.fromarray(deep), "TIFF")
    yield "TIFF 32", encoded(Image.fromarray(deep.astype(np.int32)), "TIFF")
    yield "TIFF RGB 16", tiff(wide.astype("<u2").tobytes(), WIDTH, HEIGHT, t258=(16, 16, 16), t262=2, t277=3)
    yield "TIFF CMYK", encoded(colour.convert("CMYK"), "TIFF")
    yield "TIFF YCbCr LZW", encoded(colour.convert("YCbCr"), "TIFF", compression="tiff_lzw")
    yield "TIFF JPEG", encoded(colour, "TIFF", compression="jpeg")
    yield "TIFF of one strip", encoded(colour, "TIFF", compression="tiff_adobe_deflate", strip_size=2**28)
    yield "TIFF of one strip, turned", encoded(colour, "TIFF", compression="tiff_lzw", strip_size=2**28, exif=turned())
    yield "WEBP lossy", encoded(colour, "WEBP", **FAST)
    yield "WEBP lossless", encoded(colour, "WEBP", lossless=True, quality=0, **FAST)
    yield "GIF", encoded(grey, "GIF")
    yield "AVIF RGBA", encoded(with_alpha(colour), "AVIF", **FAST)
    yield "AVIF 4:4:4", encoded(colour, "AVIF", subsampling="4:4:4", **FAST)
    yield "JPEG2000 RGBA", encoded(with_alpha(colour), "JPEG2000")
    yield "JPEG2000 in tiles", encoded(colour, "JPEG2000", tile_size=(64, 64))
    yield "PGM 12", f"P5 {WIDTH} {HEIGHT} 4095\n".encode() + (deep >> 4).astype(">u2").tobytes()
    yield "PPM 12", f"P6 {WIDTH} {HEIGHT} 4095\n".encode() + (wide >> 4).astype(">u2").tobytes()
    yield "PPM plain", b"P3 500 400 255\n" + b"77 " * 600_000
    yield "PBM plain", b"P1 500 400\n" + b"1" * 200_000
    yield "QOI", encoded(picture(500, 400), "QOI")
    sgi = struct.pack(">hBBHHHHII", 474, 0, 2, 3, WIDTH, HEIGHT, 3, 0, 65535).ljust(512, b"\0")
    yield "SGI 16", sgi + np.moveaxis(wide, 2, 0).astype(">u2").tobytes()
    yield "PNG long", encoded(picture(60, 50_000), "PNG", **FAST)
    yield "PNG wide", encoded(picture(50_000, 60), "PNG", **FAST)
    yield "JPEG progressive long", encoded(picture(70, 65_000), "JPEG", progressive=True)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield pictures that take much more memory than their pixels."""
    yield "WEBP of many codes", webp_of_many_codes(512)
    text = b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 1_048_000 + "\U0001f600".encode())
    yield "PNG of many texts", png(300, 300, 8, 2, bytes(270_000), *[(b"iTXt", text)] * 16)
    yield "PNG of a long text", png(300, 300, 8, 2, bytes(270_000), (b"tEXt", b"a\0" + b"b" * 10_000_000))
    yield "PNG of many blocks", png(300, 300, 8, 2, bytes(270_000), *[(b"prVt", bytes(9))] * 20_000)
    yield "TIFF of a large tile", tiff_of_a_tile(96, 4096)
    jpeg = encoded(picture(300, 300), "JPEG")
    yield "JPEG of many segments", jpeg[:2] + (b"\xff\xed\xff\xff" + bytes(65_533)) * 200 + jpeg[2:]
    profile = b"".join(b"\xff\xe2\xff\xfdICC_PROFILE\0" + bytes((n + 1, 255)) + bytes(65_517) for n in range(255))
    yield "JPEG of a large profile", jpeg[:2] + profile + jpeg[2:]
    entries = struct.pack(">HHHIHHHHII", 2, 0x0112, 3, 1, 6, 0, 0x9999, 4, 2_000_000, 40)
    exif = b"MM\0*\0\0\0\x08" + entries + bytes(8_000_000)
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part for part in parts)
    yield "JPEG of a long table, turned", jpeg[:2] + segments + jpeg[2:]
    canvas = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    canvas[6:10] = struct.pack("<HH", 2000, 2000)
    yield "GIF of a large canvas", bytes(canvas)


def tiff_of_a_tile(side: int, tile: int) -> bytes:
    content = bytearray(tiff(zlib.compress(bytes(tile * tile)), side, side, t258=8, t259=8, t322=tile, t323=tile))
    for strip, tiled in ((273, 324), (279, 325)):
        at = content.index(struct.pack("<HHI", strip, 4, 1))
        content[at : at + 2] = struct.pack("<H", tiled)
    return bytes(content)
