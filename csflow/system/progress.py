"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

MARK = "CSFLOW_MARK"
"""Environment variable with the text that starts every line of progress."""

_COUNT = re.compile(r"(\d+)/(\d+)")
_BAR = 24


def say(text: str) -> None:
    """Print one line of progress on standard error.

    Orchestrators wrap a step's output in their own log; ``csflow run`` picks the lines out of it again that start with
    the value of ``CSFLOW_MARK``.
    """
    print(f"{os.environ.get(MARK, '')}{text}", file=sys.stderr, flush=True)


def relay(text: str) -> None:
    """Print a line of progress that a child process said; on a terminal a count such as ``3/14`` becomes a bar.

    Args:
        text: What :func:`say` or :func:`track` printed in the child.
    """
    count = _COUNT.search(text)
    if count is None or not sys.stderr.isatty():
        print(f"  {text}", file=sys.stderr, flush=True)
        return
    done, total = int(count[1]), int(count[2])
    filled = round(_BAR * done / max(total, 1))
    bar = "█" * filled + "░" * (_BAR - filled)
    width = shutil.get_terminal_size().columns - 1
    print(f"\r\x1b[2K{f'  {bar} {text}'[:width]}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def track(items: Iterable[Item], *, total: int, label: str, every: float = 5.0) -> Iterator[Item]:
    """Yield ``items`` and report how many of ``total`` are done: a bar on a terminal, lines elsewhere.

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
