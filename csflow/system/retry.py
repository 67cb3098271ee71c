"""Retry calls that failed for a temporary reason."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def retried(
    passing: Callable[[Exception], bool], *, attempts: int = 4, pause: float = 0.5
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Decorate a function that may safely be called again, so that it is retried after temporary errors.

    Args:
        passing: Returns True for a temporary error.
        attempts: Largest number of calls; the error of the last one is raised.
        pause: Seconds before the second attempt; doubled before each further one.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @functools.wraps(function)
        def patient(*args: P.args, **kwargs: P.kwargs) -> Result:
            for attempt in range(attempts - 1):
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    if not passing(error):
                        raise
                time.sleep(pause * 2**attempt)
            return function(*args, **kwargs)

        return patient

    return decorate


def database_is_locked(error: Exception) -> bool:
    """Return True if SQLite gave up waiting for another process that writes.

    >>> database_is_locked(RuntimeError("(sqlite3.OperationalError) database is locked"))
    True
    """
    return "database is locked" in str(error)
