"""Show the progress of long work: as a bar on a terminal, as a line every few seconds in a log."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

MARK = "CSFLOW_MARK"
"""Environment variable with the text that starts every line of progress."""

_COUNT = re.compile(r"(\d+)/(\d+)")
_BAR = 24


def say(text: str) -> None:
    """Print one line of progress on standard error.

    Orchestrators mix a step's output into their own log; ``csflow run`` finds the lines again because they start with
    the value of ``CSFLOW_MARK``.
    """
    print(f"{os.environ.get(MARK, '')}{text}", file=sys.stderr, flush=True)


class Relay:
    """A printer of a child process's progress; on a terminal a count such as ``3/14`` becomes a bar.

    The next count overwrites a bar. All other output starts on a new line, so leave the context before anything else
    is printed, for instance an error message.
    """

    def __init__(self) -> None:
        self._unfinished = False

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()

    def show(self, text: str) -> None:
        """Print one line.

        Args:
            text: What :func:`say` or :func:`track` printed in the child.
        """
        count = _COUNT.search(text)
        if count is None or not sys.stderr.isatty():
            self._end_bar()
            print(f"  {text}", file=sys.stderr, flush=True)
            return
        done, total = int(count[1]), int(count[2])
        filled = round(_BAR * done / max(total, 1))
        full, rest = "█░" if (sys.stderr.encoding or "").lower().startswith("utf") else "#-"
        bar = full * filled + rest * (_BAR - filled)
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[2K{f'  {bar} {text}'[:width]}", end="", file=sys.stderr, flush=True)
        self._unfinished = True
        if done >= total:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._unfinished:
            print(file=sys.stderr, flush=True)
            self._unfinished = False


@contextmanager
def counting() -> Iterator[Callable[[str], None]]:
    """Yield a :func:`say` for messages with a count such as ``3/14``, which become one bar on a terminal."""
    if os.environ.get(MARK) or not sys.stderr.isatty():
        yield say
        return
    with Relay() as progress:
        yield progress.show


def track(items: Iterable[Item], *, total: int, label: str, every: float = 5.0) -> Iterator[Item]:
    """Yield ``items`` and report how many of ``total`` are done: a bar on a terminal, lines elsewhere.

    Args:
        items: The items to process.
        total: Number of items.
        label: Name of the work, for instance ``"extract"``.
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
