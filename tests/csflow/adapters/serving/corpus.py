"""What strangers send: small image files of every kind, right requests to spoil, and ways to spoil them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.csflow.adapters.serving.strangers import framed
from tests.csflow.adapters.serving.test_server import IMAGES, V1, V2, b64, packed
from tests.csflow.data.encodings import encoded, png


@cache
def image_files() -> dict[str, bytes]:
    """Return small files of every kind that is read, with what such files can contain besides pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    grey = colour.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    files = {f"{kind} {mode}": encoded(image, kind)
             for kind in ("PNG", "BMP", "DIB", "TIFF", "PPM", "TGA", "PCX", "SGI")
             for mode, image in (("RGB", colour), ("L", grey))}  # fmt: skip
    files |= {
        "PNG palette": encoded(colour.quantize(16), "PNG"),
        "PNG RGBA": encoded(colour.convert("RGBA"), "PNG"),
        "PNG 16": encoded(deep, "PNG"),
        "PNG text, ICC, EXIF": encoded(colour, "PNG", icc_profile=profile, exif=exif),
        "PNG zTXt": png(24, 16, 8, 2, pixels.tobytes(), (b"zTXt", b"a\0\0" + bytes(20))),
        "PNG animated": encoded(colour, "PNG", save_all=True, append_images=[grey.convert("RGB")]),
        "JPEG": encoded(colour, "JPEG", icc_profile=profile, exif=exif, comment=b"said"),
        "JPEG progressive": encoded(colour, "JPEG", progressive=True),
        "JPEG grey": encoded(grey, "JPEG"),
        "JPEG CMYK": encoded(colour.convert("CMYK"), "JPEG"),
        "MPO": encoded(colour, "MPO", save_all=True, append_images=[colour]),
        "BMP palette": encoded(colour.quantize(16), "BMP"),
        "TIFF LZW": encoded(colour, "TIFF", compression="tiff_lzw", icc_profile=profile, exif=exif),
        "TIFF deflate": encoded(colour, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encoded(colour, "TIFF", compression="jpeg"),
        "TIFF G4": encoded(colour.convert("1"), "TIFF", compression="group4"),
        "TIFF 16": encoded(deep, "TIFF"),
        "TIFF pages": encoded(colour.copy(), "TIFF", save_all=True, append_images=[grey.copy()]),
        "WEBP": encoded(colour, "WEBP", icc_profile=profile, exif=exif),
        "WEBP lossless": encoded(colour, "WEBP", lossless=True),
        "WEBP animated": encoded(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "GIF": encoded(colour, "GIF"),
        "GIF animated": encoded(colour, "GIF", save_all=True, append_images=[grey]),
        "PPM plain": b"P3 2 1 255 1 2 3 4 5 6\n",
        "PGM 16": b"P5 24 16 65535\n" + np.asarray(deep).astype(">u2").tobytes(),
        "PFM": encoded(grey.convert("F"), "PPM"),
        "JPEG2000": encoded(colour, "JPEG2000"),
        "JPEG2000 stream": encoded(colour, "JPEG2000", no_jp2=True),
        "AVIF": encoded(colour, "AVIF"),
        "TGA run lengths": encoded(colour, "TGA", compression="tga_rle"),
        "QOI": encoded(colour, "QOI"),
    }
    return files


def spoilt(content: bytes) -> st.SearchStrategy[bytes]:
    """Return bytes with a few of their parts cut, flipped, set, repeated, moved or replaced; the start more often."""
    size = max(1, len(content))
    position = st.one_of(st.integers(0, min(64, size) - 1), st.integers(0, size - 1))
    value = st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0",
                             b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"%", b"\0\1\0\0", b"\xed\xa0\x80"])  # fmt: skip
    edit = st.one_of(
        st.tuples(st.just("cut"), position, st.just(b"")),
        st.tuples(st.just("flip"), position, st.integers(0, 7).map(lambda bit: bytes([1 << bit]))),
        st.tuples(st.just("set"), position, value | st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), position, value | st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("remove"), position, st.integers(1, 40).map(bytes)),
        st.tuples(st.just("repeat"), position, st.integers(1, 40).map(bytes)),
    )
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _edited(content, edits))


def _edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for way, position, value in edits:
        before, after = content[:position], content[position:]
        if way == "cut":
            content = before
        elif way == "flip" and after:
            content = before + bytes([after[0] ^ value[0]]) + after[1:]
        elif way == "set":
            content = before + value + after[len(value) :]
        elif way == "insert":
            content = before + value + after
        elif way == "remove":
            content = before + after[len(value) :]
        elif way == "repeat":
            content = before + after[: len(value)] * 3 + after[len(value) :]
    return content


GOOD = b64(IMAGES[1])
TENSOR: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [GOOD]}
PIXELS: dict[str, Any] = {"name": "image", "shape": [2, 3, 3], "datatype": "UINT8", "data": [[[9] * 3] * 3] * 2}
DOCUMENTS: list[tuple[str, Any]] = [
    (V1, {"instances": [{"image": {"b64": GOOD}, "heatmap": True, "boxes": False}, GOOD]}),
    (V1, {"instances": [{"b64": GOOD}]}),
    (V2, {"id": "a", "inputs": [TENSOR], "outputs": [{"name": "score", "parameters": {"binary_data": False}}]}),
    (V2, {"inputs": [TENSOR | {"parameters": {"boxes": True}}], "parameters": {"binary_data_output": False}}),
    (V2, {"inputs": [PIXELS]}),
    (V1, {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"instances": [GOOD]}}),
    (V2, {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data_base64": b64(b'{"inputs": []}')}),
]
"""Right requests, with their paths; the last two are structured CloudEvents."""

VALUES = [
    "null", "true", "false", "0", "-0", "-1", "1", "255", "256", "0.5", "1e999", "-1e-999", "NaN", "-Infinity", "1E2",
    "9" * 400, "-" + "9" * 30, "18446744073709551616", "0x10", "01", "+1", "1_0", '""', '"a"', '"\\ud800"', '"\\udfff"',
    '"\\u0000"', '"\x01"', '"\\x"', '"é"', '"\U0001f600"', '"AAAA"', '"data:image/png;base64,AAAA"', '"=="', '"%00"',
    '"a' + "b" * 5000 + '"', "[]", "{}", "[[]]", "[" * 300 + "]" * 300, "[" * 1100 + "]" * 1100,
    '{"a":' * 300 + "1" + "}" * 300, "[" * 5000, '{"":1,"":2}', "[0,0,0]", "[-1]", "[9223372036854775807]", "[1.5]",
    "[1,[2]]", '["a",1]', "[" + "0," * 999 + "0]", '{"b64":"AAAA","b64":3}', "undefined", "'a'", "//", "",
]  # fmt: skip
"""Texts that stand for a value in JSON, or for none."""


class Text(str):
    """JSON as it is written."""


def written(value: object) -> str:
    """Write JSON; :class:`Text` as it is, and objects also with keys that occur twice (lists of pairs in a tuple)."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(key)}:{written(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


@st.composite
def spoilt_json(draw: Callable[..., Any], document: Any) -> bytes:
    """Return a document in which up to three values are replaced, left out, wrapped or there twice."""
    for _ in range(draw(st.integers(1, 3))):
        document = _spoil(draw, document)
    return written(document).encode("utf-8", "surrogatepass")


def _spoil(draw: Callable[..., Any], value: Any) -> Any:
    inner = isinstance(value, dict | list) and bool(value)
    if inner and draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        way = draw(st.sampled_from(["into", "into", "into", "remove", "twice", "rename"]))
        if isinstance(value, list):
            changed = [_spoil(draw, each) if way in ("into", "rename") and number == key else each
                       for number, each in enumerate(value) if way != "remove" or number != key]  # fmt: skip
            return [*changed, value[key]] if way == "twice" else changed
        pairs = [(f"{name}x" if way == "rename" and name == key else name,
                  _spoil(draw, each) if way == "into" and name == key else each)
                 for name, each in value.items() if way != "remove" or name != key]  # fmt: skip
        return (*pairs, (key, Text(draw(st.sampled_from(VALUES))))) if way == "twice" else dict(pairs)
    if draw(st.booleans()):
        return Text(draw(st.sampled_from(VALUES)))
    return draw(st.sampled_from([[value], {"b64": value}, [value] * 70]))


def binary_request(sizes: list[int], shape: list[int], datatype: str, tail: bytes) -> tuple[bytes, int]:
    """Return a V2 body with binary tensors, and the length of its JSON part."""
    inputs = [{"name": "image", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
              for size in sizes]  # fmt: skip
    head = json.dumps({"inputs": inputs}).encode()
    return head + tail, len(head)


def right_streams() -> dict[str, bytes]:
    """Return right requests as bytes, to spoil anywhere."""
    body = json.dumps({"instances": [GOOD]}).encode()
    tail = packed(IMAGES[1])
    mixed, length = binary_request([len(tail)], [1], "BYTES", tail)
    chunked = f"POST {V1} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    half = len(body) // 2
    chunks = b"%x;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    return {
        "v1": framed(V1, body, "Content-Type: application/json"),
        "v2 binary": framed(V2, mixed, f"Inference-Header-Content-Length: {length}"),
        "chunked": chunked + chunks,
        "trailer": chunked + chunks[:-2] + b"X-After: 1\r\n\r\n",
        "get": framed("/v2/models/tiles", b"", "Accept: */*", method="GET"),
        "pipeline": framed("/v2", b"", method="GET") + framed(V1, body) + framed("/metrics", b"", method="GET"),
        "old": b"GET /v2/health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "expect": framed(V1, body, "Expect: 100-continue"),
        "upgrade": framed("/v2", b"", "Connection: Upgrade", "Upgrade: websocket", method="GET"),
        "head": framed("/v2/health/ready", b"", method="HEAD"),
        "elements": struct.pack("<I", 7) + framed("/", b"", method="GET"),
    }
