"""Run many transfers at once; the first that fails stops those that have not begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> list[_Result]:
    """Call a function for many items at once.

    Args:
        function: Called in several threads.
        items: Its arguments.
        workers: Number of calls at once.

    Returns:
        The results in the order of ``items``.

    Raises:
        Exception: The error of the first call that failed; calls that have not begun by then are not made.
    """
    failed = Event()

    def guarded(item: _Item) -> _Result:
        if failed.is_set():
            raise CancelledError
        try:
            return function(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(guarded, item) for item in items]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, CancelledError):
            raise error
    return [future.result() for future in futures]
