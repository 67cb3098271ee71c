"""Decode the images of requests within a memory that all of them share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image

from csflow.adapters.serving.limits import MEBI, Limits
from csflow.adapters.serving.requests import RequestedImage
from csflow.data.decoding_cost import decoding_cost, pixels_cost
from csflow.data.images import decode_image, image_of_pixels
from csflow.detector.engine import Engine
from csflow.detector.trunk import Levels
from csflow.errors import DataError


class Sized(NamedTuple):
    """An image, sized for the trunk.

    Attributes:
        levels: The image at every scale.
        size: Width and height before.
    """

    levels: Levels
    size: tuple[int, int]


class Decoder:
    """Decodes and sizes one image at a call; several threads may call it, and wait for each other's memory.

    Args:
        limits: Pixels of an image, and memory of all that are decoded at one time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = limits.decoding_bytes
        self._changed = threading.Condition()
        self._opening = threading.Lock()  # reading a header takes memory, too, and that is not counted

    def __call__(self, engine: Engine, image: RequestedImage) -> Sized:
        """Decode an image as the line does, and size it.

        Raises:
            DataError: If it is damaged, no image, of a format that is closed here, or too large.
        """
        features = engine.line.features
        with self._memory(self._cost(image, features.image_size)):
            picture = self._decoded(image, features.bit_depth)
            return Sized(engine.sized(picture), picture.size)

    def _cost(self, image: RequestedImage, image_size: int) -> int:
        content, limits = image.content, self._limits
        if isinstance(content, bytes):
            with self._opening:
                cost = decoding_cost(
                    content, _name(content), image_size=image_size, max_pixels=limits.pixels, formats=limits.formats
                )
        else:
            cost = pixels_cost(content.shape[1], content.shape[0], image_size)
        if cost > limits.decoding_bytes:
            raise DataError(
                f"The image needs up to {cost // MEBI} MiB to be decoded, expected at most "
                f"{limits.decoding_bytes // MEBI}. Send it smaller, or as PNG or JPEG."
            )
        return cost

    def _decoded(self, image: RequestedImage, bit_depth: int | None) -> Image.Image:
        content, limits = image.content, self._limits
        if isinstance(content, bytes):
            return decode_image(
                content, name=_name(content), bit_depth=bit_depth, max_pixels=limits.pixels, formats=limits.formats
            )
        return image_of_pixels(content, "The tensor", max_pixels=limits.pixels)

    @contextmanager
    def _memory(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _name(content: bytes) -> str:
    return f"image of {len(content)} bytes"
