from __future__ import annotations

import pytest

from csflow.system.retry import database_is_locked, retried


def locked_for(times: int) -> list[int]:
    calls: list[int] = []

    @retried(database_is_locked, attempts=3, pause=0.001)
    def write() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise RuntimeError("(sqlite3.OperationalError) database is locked")
        return "written"

    assert write() == "written"
    return calls


def test_locked_database_is_tried_again() -> None:
    assert len(locked_for(2)) == 3


def test_last_error_is_raised() -> None:
    with pytest.raises(RuntimeError, match="locked"):
        locked_for(3)


def test_other_errors_are_not_repeated() -> None:
    calls = []

    @retried(database_is_locked, pause=0.001)
    def broken() -> None:
        calls.append(1)
        raise ValueError("no such column")

    with pytest.raises(ValueError, match="column"):
        broken()
    assert len(calls) == 1
