"""Quieten the loggers of libraries for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Set the level of some loggers inside the block; afterwards they have their former levels again.

    Args:
        level: Least level that they report, for instance ``logging.ERROR``.
        names: Names of the loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    former = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, its_level in zip(loggers, former, strict=True):
            logger.setLevel(its_level)
