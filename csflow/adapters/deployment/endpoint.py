"""What all endpoints have in common: who they are, and how images are sent to them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Protocol

BATCH = 16
"""Images in one request."""


class Endpoint(Protocol):
    """Something that answers for a line over HTTP: a process of this machine or a service of a cluster."""

    @property
    def line(self) -> str:
        """The line, and the name its model is served under."""

    @property
    def url(self) -> str:
        """Address of the REST server."""

    @property
    def digest(self) -> str:
        """Digest of the detector directory it serves."""

    @property
    def version(self) -> str:
        """Registered version it serves."""

    @property
    def beside(self) -> str:
        """What else gets some of the requests, for people: ``version 4 at 10 %``; empty for nothing."""

    @property
    def log(self) -> str:
        """Where its words can be read: a file, or the command that shows them."""


def request_bodies(images: Sequence[bytes], *, heatmap: bool, boxes: bool) -> Iterator[bytes]:
    """V1 bodies for encoded images, in the order given, at most :data:`BATCH` images each."""
    for start in range(0, len(images), BATCH):
        instances = [
            {"image": {"b64": base64.b64encode(image).decode()}, "heatmap": heatmap, "boxes": boxes}
            for image in images[start : start + BATCH]
        ]
        yield json.dumps({"instances": instances}).encode()
