"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

MARK = "CSFLOW_MARK"


def say(text: str) -> None:
    """Print one line for the person who waits.

    Orchestrators wrap a step's output in their own log; lines that start with the value of
    ``CSFLOW_MARK`` are what ``python -m pipelines run`` picks out of it again.
    """
    print(f"{os.environ.get(MARK, '')}{text}", file=sys.stderr, flush=True)


def track(items: Iterable[Item], *, total: int, label: str, every: float = 5.0) -> Iterator[Item]:
    """Yield ``items`` and report how many of ``total`` are done.

    Args:
        items: What to go through.
        total: How many items there are.
        label: What is being done, for instance ``"extract"``.
        every: Seconds between two lines when the output is not a terminal.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, total=total, description=label, console=Console(stderr=True))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every or done == total:
            last = now
            say(f"{label}: {done}/{total} ({done / max(now - start, 1e-9):.1f}/s)")
