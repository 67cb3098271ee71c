"""Loggers are quiet inside a block and as before after it, also when the block fails."""

from __future__ import annotations

import logging
from contextlib import suppress

from csflow.system.loggers import log_level


def test_levels_are_restored() -> None:
    first, second = logging.getLogger("csflow.test.first"), logging.getLogger("csflow.test.second")
    first.setLevel(logging.DEBUG)
    inside = []
    with suppress(RuntimeError), log_level(logging.ERROR, first.name, second.name):
        inside += [first.level, second.level]
        raise RuntimeError
    assert inside == [logging.ERROR, logging.ERROR]
    assert (first.level, second.level) == (logging.DEBUG, logging.NOTSET)
