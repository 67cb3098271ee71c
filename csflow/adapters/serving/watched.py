"""Notice that files have changed, so that they are read again without a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path

CHECK_SECONDS = 1.0
"""Files are looked at this often at most, however many requests come."""

_Signature = tuple[tuple[int, int, int, int] | None, ...]


class Watched:
    """Files that are looked at every now and then.

    Args:
        paths: The files. Links are followed, so that one that is turned to another file counts as a change.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._seen = self.signature()
        self._next = time.monotonic() + CHECK_SECONDS

    def changed(self, *, at_once: bool = False) -> bool:
        """Return True once after each change of a file.

        Args:
            at_once: True to look even if that was done a moment ago.
        """
        with self._lock:
            if not at_once and time.monotonic() < self._next:
                return False
            self._next = time.monotonic() + CHECK_SECONDS
            before, self._seen = self._seen, self.signature()
            return self._seen != before

    def look_again(self) -> None:
        """Count what is there now as a change that has not been noticed yet."""
        with self._lock:
            self._seen = ()

    def signature(self) -> _Signature:
        """Return what tells each file from what it was before; None for one that is missing."""
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
