"""State what one client, and all clients together, may take of a server."""

from __future__ import annotations

from dataclasses import dataclass

from csflow.data.image_files import SERVED_FORMATS

MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of requests and of what waits.

    A line may have half of what may wait, so that a line which is flooded does not shut the others out.

    Attributes:
        images: Images of one request at most. More would keep other clients waiting.
        body_bytes: Bytes of one request at most, over REST and gRPC, also after unpacking.
        bodies_bytes: Bytes of all requests that are being received, wait or are computed at most.
        pixels: Pixels of one image at most.
        request_pixels: Pixels of all images of a request at most.
        formats: Formats of image files that are opened.
        decoding_bytes: Memory that all images which are being decoded at one time take at most; an image that takes
            more is refused.
        waiting_images: Images that wait at most, in all lines.
        waiting_seconds: A request that would wait longer is turned away.
    """

    images: int = 64
    body_bytes: int = 64 * MEBI
    bodies_bytes: int = 160 * MEBI
    pixels: int = 50_000_000
    request_pixels: int = 200_000_000
    formats: tuple[str, ...] = SERVED_FORMATS
    decoding_bytes: int = 448 * MEBI
    waiting_images: int = 1024
    waiting_seconds: float = 30.0


_COPIES = 2
"""Copies of a body that are in memory until its images are scored: as received, and the images in it."""

_PARSED_BYTES = 256 * MEBI
"""What parsing one body takes for a moment, measured with the worst that ``bodies.py`` and ``messages.py`` allow."""

_CONNECTION_BYTES = 160 * 1024
"""What a connection takes that is sending its headers or the first part of a body."""

_SLACK = 1.1
"""Allocators keep holes between what is used."""


def memory_needed(limits: Limits, loaded: int, connections: int = 1000) -> int:
    """Return the bytes that a server takes at most.

    Args:
        limits: What requests may take.
        loaded: Bytes that the process takes with its lines loaded, once each worker has scored a full batch:
            interpreter, libraries, trunk, weights and the arena.
        connections: Clients that are connected at most.
    """
    bodies = _COPIES * limits.bodies_bytes + _PARSED_BYTES
    return int(_SLACK * (loaded + limits.decoding_bytes + bodies + connections * _CONNECTION_BYTES))
