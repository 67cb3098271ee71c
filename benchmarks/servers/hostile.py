"""The worst requests that a server may take, as files to send: pictures that grow, and JSON that grows."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from servers.protocols import request_of
from servers.settings import LINE, Settings

MEGAPIXELS = 89.0
"""Just below what Pillow opens, 89 478 485 pixels."""

INPUTS, INSTANCES = (1, 4, 63), 12
"""Mebibytes of empty inputs and instances; the limit of a body is 64, that of lists in one is reached with 12."""

_LEVEL = 9


@dataclass(frozen=True)
class Hostile:
    """A request to send.

    Attributes:
        name: In the table.
        path: In the address.
        file: Its body.
        headers: Besides the length.
        copies: Connections that send it at once.
    """

    name: str
    path: str
    file: Path
    headers: dict[str, str] = field(default_factory=dict)
    copies: int = 1


def requests(folder: Path, settings: Settings) -> list[Hostile]:
    """Write the bodies into a folder."""
    folder.mkdir()
    scale = settings.scale
    side, million = round((MEGAPIXELS * 1e6 * scale) ** 0.5), round(MEGAPIXELS * 1e6 * scale)
    square = png(side, side, "RGBA")
    medium = png(round(side / 3), round(side / 3), "RGB")
    tall = _cut(png(1, 16, "RGB"), 1, million)
    return [
        _posted(folder, "one tall PNG of 74 bytes", [tall]),
        _posted(folder, "one RGBA PNG", [square]),
        _posted(folder, "ten RGBA PNGs in a request", [square] * 10),
        _posted(folder, "64 PNGs in a request", [medium] * 64),
        _posted(folder, "an RGBA PNG from each of 16 clients", [square], copies=16),
        *(_inputs(folder, kibibytes) for kibibytes in dict.fromkeys(round(scale * each * 1024) for each in INPUTS)),
        _instances(folder, round(scale * INSTANCES * 1024)),
    ]


def png(width: int, height: int, mode: str) -> bytes:
    """Make a PNG of one opaque colour without holding its pixels."""
    pixel, kind = {"RGB": (b"\x80\x80\x80", 2), "RGBA": (b"\x80\x80\x80\xff", 6)}[mode]
    row, packer = b"\0" + pixel * width, zlib.compressobj(_LEVEL)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _cut(small: bytes, width: int, height: int) -> bytes:
    """Declare another size for a PNG, so that its data end too early."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return small[:8] + _chunk(b"IHDR", header) + small[8 + 25 :]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _posted(folder: Path, name: str, images: Sequence[bytes], copies: int = 1) -> Hostile:
    request = request_of("v1", LINE, images)
    return Hostile(name, request.path, _saved(folder, name, request.body), request.headers, copies)


def _inputs(folder: Path, kibibytes: int) -> Hostile:
    body = b'{"inputs":[' + b"{}," * (kibibytes * 2**10 // 3) + b"{}]}"
    name = f"{kibibytes} KiB of empty inputs"
    return Hostile(name, f"/v2/models/{LINE}/infer", _saved(folder, name, body), {"Content-Type": "application/json"})


def _instances(folder: Path, kibibytes: int) -> Hostile:
    body = b'{"instances":[' + b"[]," * (kibibytes * 2**10 // 3) + b"[]]}"
    name = f"{kibibytes} KiB of empty instances"
    return Hostile(name, f"/v1/models/{LINE}:predict", _saved(folder, name, body), {"Content-Type": "application/json"})


def _saved(folder: Path, name: str, body: bytes) -> Path:
    file = folder / name.replace(" ", "-")
    file.write_bytes(body)
    return file
