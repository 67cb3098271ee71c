"""Serve other detectors while requests are answered: what is wanted is asked again, and what differs is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from csflow.adapters.serving.lines import Lines
from csflow.adapters.serving.served import ServedDetector, Wanted
from csflow.errors import CsflowError

_logger = logging.getLogger("csflow.serving")

_State = dict[str, tuple[ServedDetector, int]]


class Replacing:
    """Keeps what is served equal to what is wanted.

    Args:
        lines: What is served.
        wanted: Returns the detectors to serve.
    """

    def __init__(self, lines: Lines, wanted: Wanted) -> None:
        self._lines = lines
        self._wanted = wanted
        self._tried: _State = {}
        self._complaint = ""

    def start(self) -> None:
        """Serve what is wanted now.

        Raises:
            CsflowError: If that is impossible.
        """
        wanted = self._wanted()
        self._tried = _state(wanted)
        self._lines.serve(wanted)

    def look(self, *, at_once: bool = False) -> None:
        """Ask again what is wanted, and serve it if it is something else; on any failure, what is served stays.

        Args:
            at_once: True to try again even if nothing has changed since a failure.
        """
        try:
            wanted = self._wanted()
            if at_once or _state(wanted) != self._tried:
                self._tried = _state(wanted)
                self._lines.replace(wanted)
            self._complaint = ""
        except CsflowError as error:
            self._complain(str(error), at_once)
        except Exception as error:
            self._complain(repr(error), at_once, error)

    def _complain(self, reason: str, at_once: bool, error: Exception | None = None) -> None:
        """Log a failure once, not at every look."""
        if at_once or reason != self._complaint:
            _logger.error("%s What is served stays as it is.", reason, exc_info=error)
        self._complaint = reason


def _state(wanted: Mapping[str, ServedDetector]) -> _State:
    """Return what is wanted, and when it was written: a detector that failed is tried again once it has changed."""
    return {name: (served, _written(served.directory)) for name, served in wanted.items()}


def _written(directory: Path) -> int:
    try:
        return max((path.stat().st_mtime_ns for path in (directory, *directory.iterdir())), default=0)
    except OSError:
        return 0
