from pathlib import Path

import numpy as np
import pytest
from sidebyside.child import Memory
from sidebyside.process import by_turns


def test_implementations_take_turns() -> None:
    order: list[str] = []

    def measured(name: str, value: float) -> float:
        order.append(name)
        return value

    times = by_turns({"ours": lambda: measured("ours", 1.0), "peer": lambda: measured("peer", 2.0)}, 3)
    assert order == ["ours", "peer"] * 3
    assert times == {"ours": [1.0] * 3, "peer": [2.0] * 3}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_that_was_freed_still_counts() -> None:
    memory = Memory()
    assert memory.peak() < 20
    block = np.ones(100_000_000, np.uint8)
    del block
    assert 90 < memory.peak() < 140
