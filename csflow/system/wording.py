"""Word messages: shorten long lists of names."""

from __future__ import annotations

from collections.abc import Sequence


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Join the first ``limit`` names and the number of further ones, for messages."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
