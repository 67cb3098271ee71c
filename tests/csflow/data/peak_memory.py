"""Measure the peak of resident memory that decoding and sizing image files takes, in a process for each.

``python -m tests.csflow.data.peak_memory FILE…`` prints a JSON list: the bound and the peak in bytes of every file.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import sys
from pathlib import Path

from PIL import Image

from csflow.config import FeatureConfig
from csflow.data.decoding_cost import decoding_cost
from csflow.data.images import read_image, to_pyramid_levels
from csflow.errors import DataError

FEATURES = FeatureConfig(image_size=384, scales=3)


def status(key: str) -> int:
    """Return a figure of this process in bytes, as Linux names it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measured(file: Path) -> tuple[int, int]:
    """Return the bound and the peak in bytes; the content of the file counts for neither."""
    content = file.read_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    cost = decoding_cost(content, file.name, image_size=FEATURES.image_size)
    try:
        to_pyramid_levels(read_image(content, 16), FEATURES)
    except DataError as error:
        print(f"{file.name}: {error}", file=sys.stderr)
    return cost, status("VmHWM") - before


def main() -> None:
    Image.init()
    warm = io.BytesIO()
    Image.new("LA", (64, 64), (200, 99)).save(warm, "PNG")
    to_pyramid_levels(read_image(warm.getvalue()), FEATURES)
    found: list[tuple[int, int]] = []
    for file in map(Path, sys.argv[1:]):
        receiver, sender = os.pipe()
        child = os.fork()
        if not child:
            os.write(sender, json.dumps(measured(file)).encode())
            os._exit(0)
        os.close(sender)
        with os.fdopen(receiver, "rb") as answers:
            found.append(json.loads(answers.read()))
        os.waitpid(child, 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
