"""Read request bodies: unpack them, and parse JSON only if it cannot grow into more than the server has memory for."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Mapping

import orjson

from csflow.adapters.serving.errors import UnknownEncodingError
from csflow.adapters.serving.limits import Limits
from csflow.errors import DataError

MOST_OBJECTS = 10_000
"""Objects in a JSON body at most; each takes 64 bytes or more, however short it is written."""

MOST_KEYS = 100_000
"""Keys at most, in all objects together."""

MOST_VALUES = 3 * 2**20
"""Values in lists at most: the pixels of an image of 1 000 x 1 000 written as numbers."""

MOST_LISTS = 2**20 + 10_000
"""Lists at most: those of three numbers each in an image of 1 000 x 1 000. Nothing is answered while they are made."""

MOST_TEXTS = 100_000
"""Texts at most, keys not counted; each takes 50 bytes or more."""

_BOUNDS = (
    (b":", MOST_KEYS, "keys"),
    (b"{", MOST_OBJECTS, "objects"),
    (b"[", MOST_LISTS, "lists"),
    (b",", MOST_VALUES, "values"),
    (b'"', 2 * (MOST_KEYS + MOST_TEXTS), "quotation marks"),
)
"""What can be counted without parsing; a text that contains these characters counts as well."""

_MOST_BYTES = Limits.body_bytes

_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def unpacked(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Decompress a body as its ``Content-Encoding`` says; bodies of other encodings are returned as they are.

    Args:
        body: As received.
        headers: Of the request, names in lower case.

    Raises:
        UnknownEncodingError: If the encoding is none of gzip, deflate and identity.
        DataError: If the body is damaged, or larger than ``Limits.body_bytes`` once unpacked.
    """
    for name in reversed([each.strip().lower() for each in headers.get("content-encoding", "").split(",")]):
        if name in ("", "identity"):
            continue
        if name not in _WINDOWS:
            raise UnknownEncodingError(f"Content-Encoding is {name[:40]!r}, expected gzip, deflate or none.")
        body = _inflated(body, name)
    return body


def parsed(body: bytes) -> object:
    """Parse JSON after counting what it would make.

    Raises:
        DataError: If it is not JSON, or has too many objects, lists or values.
    """
    for character, most, what in _BOUNDS:
        if (found := body.count(character)) > most:
            raise DataError(
                f"The JSON has about {found} {what}, expected at most {most}. Send images as files (base64, or the "
                "binary extension), and fewer in a request."
            )
    # The collector would look for cycles at every 700th new list, among all before it: seven times the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DataError(f"The body is not JSON: {error}.") from error
    finally:
        if collecting:
            gc.enable()


def _inflated(body: bytes, name: str) -> bytes:
    stream = zlib.decompressobj(_WINDOWS[name])
    try:
        try:
            content = stream.decompress(body, _MOST_BYTES + 1)
        except zlib.error:
            if name != "deflate":
                raise
            stream = zlib.decompressobj(-zlib.MAX_WBITS)  # without zlib's header, as many clients send it
            content = stream.decompress(body, _MOST_BYTES + 1)
    except zlib.error as error:
        raise DataError(f"The body is not {name} as its Content-Encoding says: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"The body is larger than {_MOST_BYTES} bytes once unpacked. Send fewer images at a time.")
    if not stream.eof or stream.unused_data:
        raise DataError(f"The body is cut off or has bytes after its {name} data.")
    return content
