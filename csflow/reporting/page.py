"""Make self-contained HTML pages from templates, with the pictures embedded in the page."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image

from csflow.detector.heatmap import colours

SMALL, LARGE = 320, 560
"""Longest sides of pictures in a page, in pixels: to recognise a part, and to see a defect in it."""


def render_page(template: str, **values: object) -> str:
    """Fill in a template of ``csflow/reporting/templates``; the user's text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("csflow.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def css_gradient(stops: int = 11) -> str:
    """Return the colours of the maps, lowest value first, as the stops of a CSS gradient."""
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in colours(np.linspace(0.0, 1.0, stops)).tolist())


def thumbnail(picture: Image.Image, side: int = SMALL) -> str:
    """Shrink a picture to ``side`` pixels and return it as a JPEG in the form of a ``src`` attribute."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    return data_uri(encoded(small, "JPEG"), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Return an image file in the form of a ``src`` attribute."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def encoded(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    """Encode a picture as an image file in RGB."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, kind, quality=88)
    return buffer.getvalue()
