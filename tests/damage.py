"""Ways in which a disk, a crash or a person damages a file, for tests of everything that csflow keeps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path


def damages(content: bytes, *, flips: int = 8) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name of each damage and the file's content after it; ``None`` stands for a folder in its place."""
    for number in range(flips):
        offset = number * (len(content) - 1) // (flips - 1)
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (number % 8)
        yield f"bit {number % 8} of byte {offset} flipped", bytes(flipped)
    for length in sorted({1, 7, len(content) // 3, len(content) // 2, len(content) - 1}):
        if 0 < length < len(content):
            yield f"cut to {length} bytes", content[:length]
    yield "bytes after the end", content + b"\0" * 16
    yield "zeros", b"\0" * len(content)
    yield "empty", b""
    yield "a folder", None


def inflict(path: Path, content: bytes | None) -> None:
    """Put damaged content, or a folder, in the place of a file."""
    remove(path)
    if content is None:
        path.mkdir()
        (path / "stray").touch()
    else:
        path.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
