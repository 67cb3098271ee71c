"""Say what a benchmark does at the moment."""

from __future__ import annotations

import sys


def say(what: str) -> None:
    """Write one line to standard error, where no result is."""
    print(f"… {what}", file=sys.stderr, flush=True)
