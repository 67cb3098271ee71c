"""Decode the images of requests within a memory that all of them share."""

from __future__ import annotations

from PIL import Image

from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.requests import RequestedImage
from csflow.detector.engine import Engine


class Decoder:
    """Decodes one image at a call; several threads may call it.

    Args:
        limits: Pixels of an image, and memory of all that are decoded at one time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def __call__(self, engine: Engine, image: RequestedImage) -> Image.Image:
        """Decode an image as the line does.

        Raises:
            DataError: If it is damaged, no image or too large.
        """
        if isinstance(image.content, bytes):
            return engine.read(image.content)
        return Image.fromarray(image.content)
