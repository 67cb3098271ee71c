"""What clients send: from a V1 body or V2 tensor to encoded images, with a reason when it is none.

Everything wrong with a request becomes a :class:`csflow.errors.DataError` that quotes what was found and
what was expected; the server turns it into a 400.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csflow.errors import DataError

MAX_IMAGES = 64
"""Images in one request. More would keep other clients waiting and memory busy."""

WISHES = ("heatmap", "boxes")
_EXPECTED = (
    'Expected {"instances": [{"image": {"b64": "…"}, "heatmap": true, "boxes": true}]}, '
    "or just the base64 text of an encoded image as an instance"
)


@dataclass(frozen=True)
class Item:
    """One image to score.

    Attributes:
        content: The encoded image file.
        heatmap: Whether the answer shall hold a heat-map.
        boxes: Whether the answer shall hold the defective regions.
    """

    content: bytes
    heatmap: bool = False
    boxes: bool = False


def items_of_instances(body: object) -> list[Item]:
    """Read a V1 body.

    Raises:
        DataError: Naming the instance and what is wrong with it.
    """
    if not isinstance(body, dict):
        raise DataError(f"The body is a JSON {_kind(body)}. {_EXPECTED}.")
    if "instances" not in body:
        raise DataError(f"The body has no key 'instances', only: {_names(body)}. {_EXPECTED}.")
    instances = body["instances"]
    if not isinstance(instances, list):
        raise DataError(f"'instances' is a JSON {_kind(instances)}, expected a list. {_EXPECTED}.")
    check_count(len(instances))
    return [_item(instance, f"instances[{index}]") for index, instance in enumerate(instances)]


def check_count(count: int) -> None:
    """Refuse an empty or overlong batch.

    Raises:
        DataError: If there are no images or more than :data:`MAX_IMAGES`.
    """
    if count == 0:
        raise DataError("The request holds no image. Send at least one.")
    if count > MAX_IMAGES:
        raise DataError(f"The request holds {count} images, at most {MAX_IMAGES} are allowed. Send several requests.")


def wishes_of(parameters: Mapping[str, object] | None) -> dict[str, bool]:
    """The wishes among V2 parameters; other parameters belong to the protocol and are left alone.

    Raises:
        DataError: If a wish is not a boolean.
    """
    given = parameters or {}
    return {name: _boolean(given[name], f"parameters.{name}") for name in WISHES if name in given}


def images_of_tensor(
    name: str, datatype: str, shape: Sequence[int], data: Sequence[object] | None, raw: bytes | None
) -> list[bytes]:
    """Read the encoded images out of a V2 tensor.

    Args:
        name: Of the tensor; must be ``image``.
        datatype: ``BYTES`` (one element an image) or ``UINT8`` (the bytes of one image).
        shape: As declared by the client; must hold as many elements as there are.
        data: Elements from JSON or protobuf: base64 text or bytes, or numbers.
        raw: The tensor's bytes from the binary extension or ``raw_input_contents``.

    Raises:
        DataError: Naming what does not fit.
    """
    if name != "image":
        raise DataError(f"There is no input {name!r}. Expected one input named 'image'.")
    if datatype == "BYTES":
        images = _bytes_elements(raw) if raw is not None else [_element(value) for value in data or []]
        found = len(images)
    elif datatype == "UINT8":
        content = raw if raw is not None else _octets(data or [])
        images, found = [content], len(content)
    else:
        raise DataError(
            f"Input 'image' has datatype {datatype!r}. "
            "Expected BYTES (one encoded image an element) or UINT8 (the bytes of one encoded image)."
        )
    if found != math.prod(shape):
        raise DataError(f"Input 'image' declares shape {list(shape)} but holds {found} {datatype} elements.")
    check_count(found if datatype == "BYTES" else min(found, 1))
    return images


def _item(instance: object, place: str) -> Item:
    if isinstance(instance, str):
        return Item(_decoded(instance, place))
    if not isinstance(instance, dict):
        raise DataError(f"{place} is a JSON {_kind(instance)}. {_EXPECTED}.")
    holders = [key for key in ("image", "b64") if key in instance]
    unknown = sorted(str(key) for key in instance if key not in {"image", "b64", *WISHES})
    if unknown or len(holders) != 1:
        raise DataError(f"{place} has the keys {_names(instance)}. {_EXPECTED}.")
    wishes = {name: _boolean(instance[name], f"{place}.{name}") for name in WISHES if name in instance}
    key = holders[0]
    value, place = instance[key], f"{place}.{key}"
    if key == "image" and isinstance(value, dict):
        if list(value) != ["b64"]:
            raise DataError(f"{place} has the keys {_names(value)}, expected only 'b64'.")
        value, place = value["b64"], f"{place}.b64"
    if not isinstance(value, str):
        raise DataError(f"{place} is a JSON {_kind(value)}, expected base64 text.")
    return Item(_decoded(value, place), **wishes)


def _decoded(text: str, place: str) -> bytes:
    # Encoders such as `base64` wrap their lines; anything else outside the alphabet is an error.
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{place} is not base64 ({error}). Send the image file's bytes, base64-encoded.") from error
    if not content:
        raise DataError(f"{place} is empty. Send the image file's bytes, base64-encoded.")
    return content


def _element(value: object) -> bytes:
    """One element of a BYTES tensor: text is base64, bytes are the image itself."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _decoded(value, "Input 'image'")
    raise DataError(f"Input 'image' holds a JSON {_kind(value)}, expected base64 text, one for each image.")


def _octets(data: Sequence[object]) -> bytes:
    try:
        return bytes(data)  # type: ignore[arg-type]  # bytes() itself refuses what is no octet
    except (TypeError, ValueError) as error:
        raise DataError(f"Input 'image' of datatype UINT8 holds something else than 0 to 255: {error}.") from error


def _bytes_elements(raw: bytes) -> list[bytes]:
    """Split a binary BYTES tensor: each element follows its length as a little-endian uint32."""
    elements: list[bytes] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise DataError(f"Input 'image': {len(raw) - place} bytes are left over where a 4-byte length belongs.")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4
        if place + length > len(raw):
            raise DataError(
                f"Input 'image': element {len(elements)} declares {length} bytes but only {len(raw) - place} follow. "
                "In a BYTES tensor each element is preceded by its length as a little-endian uint32."
            )
        elements.append(raw[place : place + length])
        place += length
    return elements


def _boolean(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise DataError(f"{place} is a JSON {_kind(value)}, expected true or false.")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)


def _names(keys: Mapping[str, object]) -> str:
    """The keys of an object for a message, shortened: they come from a stranger."""
    return ", ".join(repr(str(key)[:40]) for key in list(keys)[:10]) or "none"
