"""Read the images and the client's wishes from a V1 body or a V2 tensor, or say what is wrong with the request.

Every mistake in a request becomes a :class:`csflow.errors.DataError` that names what was found and what was expected;
the server turns it into a 400.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from csflow.adapters.serving.limits import Limits
from csflow.errors import DataError

Content: TypeAlias = bytes | NDArray[np.uint8]
"""An image as a client sends it: the bytes of a file, or pixels ``(H, W, 3)`` in RGB."""

MAX_IMAGES = Limits.images

MOST_SIDES = 8
"""Sides of a tensor at most."""

LONGEST_SIDE = 2**26
"""Longest side of a tensor."""

WISHES = ("heatmap", "boxes")
_EXPECTED = (
    'Expected {"instances": [{"image": {"b64": "…"}, "heatmap": true, "boxes": true}]}, '
    "or just the base64 text of an encoded image as an instance"
)


@dataclass(frozen=True)
class RequestedImage:
    """One image to score.

    Attributes:
        content: The encoded image file, or pixels.
        heatmap: True if the client wants a heat-map.
        boxes: True if the client wants the defective regions.
    """

    content: Content
    heatmap: bool = False
    boxes: bool = False


def images_of_instances(body: object) -> list[RequestedImage]:
    """Read the images of a V1 body.

    Raises:
        DataError: Naming the instance and what is wrong with it.
    """
    if not isinstance(body, dict):
        raise DataError(f"The body is a JSON {_kind(body)}. {_EXPECTED}.")
    if "instances" not in body:
        raise DataError(f"The body has no key 'instances', only: {names_of(body)}. {_EXPECTED}.")
    instances = body["instances"]
    if not isinstance(instances, list):
        raise DataError(f"'instances' is a JSON {_kind(instances)}, expected a list. {_EXPECTED}.")
    check_count(len(instances))
    return [_image(instance, f"instances[{index}]") for index, instance in enumerate(instances)]


def check_count(count: int) -> None:
    """Refuse a request without images or with too many.

    Raises:
        DataError: If there are no images or more than :data:`MAX_IMAGES`.
    """
    if count == 0:
        raise DataError("The request contains no image. Send at least one.")
    if count > MAX_IMAGES:
        raise DataError(f"The request contains {count} images, expected at most {MAX_IMAGES}. Send several requests.")


def wishes_of(parameters: Mapping[str, object] | None) -> dict[str, bool]:
    """Read the client's wishes from V2 parameters; other parameters belong to the protocol and are ignored.

    Returns:
        The wishes that are given, ``heatmap`` and ``boxes``.

    Raises:
        DataError: If a wish is not a boolean.
    """
    given = parameters or {}
    return {name: boolean(given[name], f"parameters.{name}") for name in WISHES if name in given}


def images_of_tensor(
    name: str, datatype: str, shape: Sequence[int], data: Sequence[object] | None, raw: bytes | None
) -> list[Content]:
    """Read the images of a V2 tensor.

    ``BYTES`` has an encoded image an element. ``UINT8`` has pixels in RGB if its shape is ``[H, W, 3]`` or
    ``[N, H, W, 3]``, else the bytes of one encoded image.

    Args:
        name: Name of the tensor; must be ``image``.
        datatype: ``BYTES`` or ``UINT8``.
        shape: As declared by the client; must agree with the number of elements.
        data: Elements from JSON or protobuf, flat or nested: base64 text or bytes, or numbers.
        raw: The tensor's bytes from the binary extension or ``raw_input_contents``.

    Raises:
        DataError: Naming what does not fit.
    """
    if name != "image":
        raise DataError(f"There is no input {clipped(name)}. Expected one input named 'image'.")
    if len(shape) > MOST_SIDES or not all(0 <= side <= LONGEST_SIDE for side in shape):
        raise DataError(
            f"Input 'image' has the shape {clipped(list(shape))}, expected at most {MOST_SIDES} sides of at most "
            f"{LONGEST_SIDE}."
        )
    if datatype == "BYTES":
        return _encoded_images(shape, data, raw)
    if datatype != "UINT8":
        raise DataError(
            f"Input 'image' has datatype {clipped(datatype)}. "
            "Expected BYTES (one encoded image an element) or UINT8 (pixels, or the bytes of one encoded image)."
        )
    return _images_of_octets(shape, raw if raw is not None else _octets(data or []))


def _encoded_images(shape: Sequence[int], data: Sequence[object] | None, raw: bytes | None) -> list[Content]:
    # Nothing is read after the image that is one too many: a client can send millions of empty ones.
    found = _bytes_elements(raw) if raw is not None else (_element(value) for value in _flat(data or []))
    elements: list[Content] = list(islice(found, MAX_IMAGES + 1))
    if len(elements) > MAX_IMAGES:
        raise DataError(
            f"Input 'image' contains more than {MAX_IMAGES} images. Send several requests, at most "
            f"{MAX_IMAGES} in each."
        )
    _check_shape(shape, len(elements), "BYTES")
    check_count(len(elements))
    return elements


def _images_of_octets(shape: Sequence[int], content: bytes) -> list[Content]:
    _check_shape(shape, len(content), "UINT8")
    if len(shape) < 3:
        check_count(min(len(content), 1))
        return [content]
    if len(shape) > 4 or shape[-1] != 3 or 0 in shape[-3:]:
        raise DataError(
            f"Input 'image' of datatype UINT8 has the shape {clipped(list(shape))}. "
            "Expected pixels in RGB, [H, W, 3] or [N, H, W, 3], or the bytes of one encoded image."
        )
    count = shape[0] if len(shape) == 4 else 1
    check_count(count if content else 0)
    return list(np.frombuffer(content, np.uint8).reshape(count, *shape[-3:]))


def _check_shape(shape: Sequence[int], found: int, datatype: str) -> None:
    if found != math.prod(shape):
        raise DataError(
            f"Input 'image' declares shape {clipped(list(shape))} but contains {found} {datatype} elements."
        )


def clipped(value: object) -> str:
    """Write a value that a stranger chose, for a message, without the rest if it is long."""
    text = repr(value[:10] if isinstance(value, list | str | bytes) and len(value) > 100 else value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def names_of(keys: Mapping[str, object]) -> str:
    """List the keys of an object for a message, shortened because a stranger chose them."""
    return ", ".join(repr(str(key)[:40]) for key in list(keys)[:10]) or "none"


def _image(instance: object, path: str) -> RequestedImage:
    if isinstance(instance, str):
        return RequestedImage(_decoded(instance, path))
    if not isinstance(instance, dict):
        raise DataError(f"{path} is a JSON {_kind(instance)}. {_EXPECTED}.")
    holders = [key for key in ("image", "b64") if key in instance]
    unknown = sorted(str(key) for key in instance if key not in {"image", "b64", *WISHES})
    if unknown or len(holders) != 1:
        raise DataError(f"{path} has the keys {names_of(instance)}. {_EXPECTED}.")
    wishes = {name: boolean(instance[name], f"{path}.{name}") for name in WISHES if name in instance}
    key = holders[0]
    value, path = instance[key], f"{path}.{key}"
    if key == "image" and isinstance(value, dict):
        if list(value) != ["b64"]:
            raise DataError(f"{path} has the keys {names_of(value)}, expected only 'b64'.")
        value, path = value["b64"], f"{path}.b64"
    if not isinstance(value, str):
        raise DataError(f"{path} is a JSON {_kind(value)}, expected base64 text.")
    return RequestedImage(_decoded(value, path), **wishes)


_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w.=+-]+)*;base64,", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/")


def _decoded(text: str, path: str) -> bytes:
    """Decode base64, also after ``data:…;base64,``, in the alphabet for addresses, without padding, or in lines."""
    prefix = _DATA_URI.match(text[:200])
    packed = "".join(text[prefix.end() if prefix else 0 :].split()).translate(_URL_SAFE)
    try:
        content = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{path} is not base64 ({error}). Send the image file's bytes, base64-encoded.") from error
    if not content:
        raise DataError(f"{path} is empty. Send the image file's bytes, base64-encoded.")
    return content


def _flat(data: object, depth: int = 0) -> Iterator[object]:
    """Yield the elements of nested lists."""
    if not isinstance(data, list | tuple) or depth > _DEEPEST:
        yield data
        return
    for each in data:
        yield from _flat(each, depth + 1)


_DEEPEST = 4
"""Lists within lists at most, those of ``[N, H, W, 3]``."""


def _element(value: object) -> bytes:
    """Decode one element of a BYTES tensor: text is base64, bytes are the image itself."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _decoded(value, "Input 'image'")
    raise DataError(f"Input 'image' contains a JSON {_kind(value)}, expected base64 text, one for each image.")


def _octets(data: Sequence[object]) -> bytes:
    """Read numbers in lists, nested as the tensor is; NumPy would make an array of whatever else they contain."""
    values: Iterable[object] = data
    first: object = data
    for _ in range(_DEEPEST - 1):
        first = first[0] if isinstance(first, list) and first else None
        if not isinstance(first, list):
            break
        values = chain.from_iterable(_lists(values))
    try:
        return bytes(values)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DataError(
            "Input 'image' of datatype UINT8 has a value that is not a whole number from 0 to 255, or lists of "
            "different depths."
        ) from error


def _lists(values: Iterable[object]) -> Iterator[list[object]]:
    for value in values:
        if not isinstance(value, list):
            raise TypeError("no list")
        yield value


def _bytes_elements(raw: bytes) -> Iterator[bytes]:
    """Yield the elements of a binary BYTES tensor; each follows its length as a little-endian uint32."""
    count = offset = 0
    while offset < len(raw):
        if offset + 4 > len(raw):
            raise DataError(f"Input 'image': expected a 4-byte length, but only {len(raw) - offset} bytes are left.")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise DataError(
                f"Input 'image': element {count} declares {length} bytes but only {len(raw) - offset} follow. "
                "In a BYTES tensor each element is preceded by its length as a little-endian uint32."
            )
        yield raw[offset : offset + length]
        count, offset = count + 1, offset + length


def boolean(value: object, path: str) -> bool:
    """Return a value that must be true or false; ``path`` names it in errors.

    Raises:
        DataError: If it is anything else.
    """
    if not isinstance(value, bool):
        raise DataError(f"{path} is a JSON {_kind(value)}, expected true or false.")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
