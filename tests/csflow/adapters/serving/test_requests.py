"""What clients may send, and what they are told otherwise."""

from __future__ import annotations

import base64
import struct

import pytest

from csflow.adapters.serving.requests import (
    MAX_IMAGES,
    RequestedImage,
    check_count,
    images_of_instances,
    images_of_tensor,
    wishes_of,
)
from csflow.errors import DataError

CONTENT = b"\x89PNG\x00\xff"
TEXT = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    ("instance", "image"),
    [
        (TEXT, RequestedImage(CONTENT)),
        ({"b64": TEXT}, RequestedImage(CONTENT)),
        ({"image": TEXT}, RequestedImage(CONTENT)),
        ({"image": {"b64": TEXT}}, RequestedImage(CONTENT)),
        ({"image": {"b64": TEXT}, "heatmap": True, "boxes": True}, RequestedImage(CONTENT, heatmap=True, boxes=True)),
        ({"b64": TEXT, "boxes": True, "heatmap": False}, RequestedImage(CONTENT, boxes=True)),
        (f"{TEXT[:4]}\n{TEXT[4:]}\n", RequestedImage(CONTENT)),
    ],
)
def test_every_documented_form_is_read(instance: object, image: RequestedImage) -> None:
    assert images_of_instances({"instances": [instance, TEXT]}) == [image, RequestedImage(CONTENT)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "JSON list"),
        (None, "JSON null"),
        (b"raw", "JSON bytes"),
        ({"instnaces": [TEXT]}, "no key 'instances', only: 'instnaces'"),
        ({}, "only: none"),
        ({"instances": TEXT}, "'instances' is a JSON string"),
        ({"instances": []}, "no image"),
        ({"instances": [TEXT] * (MAX_IMAGES + 1)}, f"{MAX_IMAGES + 1} images"),
        ({"instances": [7]}, r"instances\[0\] is a JSON number"),
        ({"instances": [TEXT, {"picture": TEXT}]}, r"instances\[1\] has the keys 'picture'"),
        ({"instances": [{}]}, "has the keys none"),
        ({"instances": [{"image": TEXT, "b64": TEXT}]}, "has the keys 'image', 'b64'"),
        ({"instances": [{"image": TEXT, "heat_map": True}]}, "'heat_map'"),
        ({"instances": [{"image": {"base64": TEXT}}]}, "expected only 'b64'"),
        ({"instances": [{"image": {"b64": 3}}]}, r"image\.b64 is a JSON number"),
        ({"instances": [{"b64": {"b64": TEXT}}]}, r"b64 is a JSON object"),
        ({"instances": [{"image": TEXT, "boxes": "yes"}]}, r"boxes is a JSON string, expected true or false"),
        ({"instances": ["not base64!"]}, "is not base64"),
        ({"instances": ["a"]}, "is not base64"),
        ({"instances": ["é"]}, "is not base64"),
        ({"instances": [""]}, "is empty"),
    ],
)
def test_whatever_is_wrong_is_named(body: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        images_of_instances(body)


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "raw", "images"),
    [
        ("BYTES", [2], [TEXT, TEXT], None, [CONTENT, CONTENT]),
        ("BYTES", [1, 1], [TEXT], None, [CONTENT]),
        ("BYTES", [1], [CONTENT], None, [CONTENT]),
        ("BYTES", [2], None, packed(CONTENT, b"\xff\xfe"), [CONTENT, b"\xff\xfe"]),
        ("UINT8", [6], list(CONTENT), None, [CONTENT]),
        ("UINT8", [6], None, CONTENT, [CONTENT]),
    ],
)
def test_every_form_of_tensor_is_read(
    datatype: str, shape: list[int], data: list[object] | None, raw: bytes | None, images: list[bytes]
) -> None:
    assert images_of_tensor("image", datatype, shape, data, raw) == images


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "data", "raw", "reason"),
    [
        ("picture", "BYTES", [1], [TEXT], None, "no input 'picture'"),
        ("image", "FP32", [1], [0.5], None, "datatype 'FP32'"),
        ("image", "BYTES", [2], [TEXT], None, r"shape \[2\] but contains 1"),
        ("image", "BYTES", [0], [], None, "no image"),
        ("image", "BYTES", [0], None, b"", "no image"),
        ("image", "BYTES", [1], [{"b64": TEXT}], None, "JSON object"),
        ("image", "BYTES", [1], None, packed(CONTENT)[:-1], "declares 6 bytes but only 5 follow"),
        ("image", "BYTES", [1], None, packed(CONTENT) + b"\x00", "expected a 4-byte length, but only 1 bytes are left"),
        ("image", "UINT8", [0], [], None, "no image"),
        ("image", "UINT8", [1], [256], None, "0 to 255"),
        ("image", "UINT8", [1], ["x"], None, "0 to 255"),
        ("image", "UINT8", [7], None, CONTENT, r"shape \[7\] but contains 6"),
        ("image", "BYTES", [MAX_IMAGES + 1], [TEXT] * (MAX_IMAGES + 1), None, "more than 64 images"),
        ("image", "BYTES", [2**24], None, bytes(2**26), "more than 64 images"),
        ("image", "BYTES", [10**6], ["AAAA"] * 10**6, None, "more than 64 images"),
        ("image", "UINT8", [0, 4, 3], None, b"", r"shape \[0, 4, 3\]"),
        ("image", "UINT8", [1, 0, 4, 3], [], None, r"shape \[1, 0, 4, 3\]"),
        ("image", "UINT8", [0, 4, 4, 3], None, b"", "no image"),
        ("image", "UINT8", [2, 2, 4], None, bytes(16), r"shape \[2, 2, 4\]"),
        ("image", "UINT8", [1, 1, 1, 1, 3], None, bytes(3), "Expected pixels"),
    ],
)
def test_whatever_is_wrong_with_a_tensor_is_named(
    name: str, datatype: str, shape: list[int], data: list[object] | None, raw: bytes | None, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        images_of_tensor(name, datatype, shape, data, raw)


def test_wishes_are_taken_from_parameters_and_others_left_alone() -> None:
    assert wishes_of({"heatmap": True, "binary_data_output": True}) == {"heatmap": True}
    assert wishes_of(None) == {}
    with pytest.raises(DataError, match=r"parameters\.boxes is a JSON number"):
        wishes_of({"boxes": 1})


def test_the_largest_batch_is_allowed_and_no_larger_one() -> None:
    check_count(MAX_IMAGES)
    with pytest.raises(DataError, match=f"contains {MAX_IMAGES + 1} images, expected at most {MAX_IMAGES}"):
        check_count(MAX_IMAGES + 1)
