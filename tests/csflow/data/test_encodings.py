"""The same picture in every encoding is the same picture, or the file is refused with the remedy."""

from __future__ import annotations

import numpy as np
import pytest

from csflow.data.images import read_image
from csflow.errors import DataError
from tests.csflow.data.encodings import Encoding, deep_grey, grey, refused, same_picture, texture

SAME = list(same_picture())
REFUSED = list(refused())


def difference(encoding: Encoding, bit_depth: int | None = None) -> float:
    found = read_image(encoding.content, bit_depth)
    assert found.mode == "RGB"
    expected = texture() if encoding.colour else np.repeat(grey()[..., None], 3, axis=2)
    return float(np.abs(np.asarray(found).astype(int) - expected).mean())


@pytest.mark.parametrize("encoding", SAME, ids=[each.name for each in SAME])
def test_the_same_picture(encoding: Encoding) -> None:
    assert difference(encoding) <= encoding.tolerance


@pytest.mark.parametrize("encoding", [each for bits in (10, 12, 14) for each in deep_grey(bits)], ids=lambda e: e.name)
def test_a_declared_bit_depth_makes_it_the_same_picture(encoding: Encoding) -> None:
    bits = int(encoding.name.split()[-2])
    assert difference(encoding, bits) == 0


@pytest.mark.parametrize(("encoding", "words"), REFUSED, ids=[each.name for each, _ in REFUSED])
def test_an_unknown_picture_is_refused(encoding: Encoding, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_image(encoding.content)
    assert "image of" in str(caught.value), "the message names the image"


def test_values_above_the_declared_bit_depth_are_refused() -> None:
    (encoding, *_) = deep_grey(12)
    with pytest.raises(DataError, match=r"values from 0 to 4080, expected 10 bit \(0 to 1023\)"):
        read_image(encoding.content, 10)


def test_a_declared_bit_depth_leaves_other_files_alone() -> None:
    for encoding in SAME:
        if "16" not in encoding.name and "32" not in encoding.name:
            assert difference(encoding, 12) <= encoding.tolerance, encoding.name


def test_a_dark_picture_of_16_bits_can_be_declared() -> None:
    (encoding, *_) = deep_grey(12)
    np.testing.assert_array_equal(np.asarray(read_image(encoding.content, 16))[..., 0], grey() >> 4)
