"""Timing against a clock that stands still where it is not told to go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csflow.ablation import timing
from csflow.detector import engine

PICTURES = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 20, 30)]


class Clock:
    """Time as `csflow.ablation.timing` sees it, and an engine that takes as long as it is told."""

    def __init__(self, milliseconds: list[float]) -> None:
        self.now, self.milliseconds, self.seen = 0.0, iter(milliseconds), []  # type: ignore[var-annotated]
        self.threads = 2

    def predict(self, pictures: list[Image.Image]) -> None:
        self.seen += pictures
        self.now += next(self.milliseconds) / 1000


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def timed(milliseconds: list[float], computed_by_all: list[float]) -> tuple[Clock, timing.Timing]:
        """Time with these milliseconds an image, warm-up first; others compute so many cores in each round."""
        clock = Clock(milliseconds)
        shares = iter(computed_by_all)
        states: list[tuple[float, float]] = []

        def everyone() -> float:
            before, total = states[-1] if states else (0.0, 0.0)
            share = next(shares) if len(states) % 2 else 0.0  # asked before and after each round
            states.append((clock.now, total + share * (clock.now - before)))
            return states[-1][1]

        monkeypatch.setattr(engine.Engine, "load", lambda _: clock)
        monkeypatch.setattr(timing, "cores", lambda: 2)
        monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
        monkeypatch.setattr(time, "process_time", lambda: 0.0)
        monkeypatch.setattr(timing, "busy_seconds", everyone)
        monkeypatch.setattr(timing, "REPETITIONS", 5)
        return clock, timing.time_served(Path("nowhere"), PICTURES)

    return timed


def test_the_fastest_round_counts_and_says_how_busy_others_were_in_it(run: Any) -> None:
    clock, found = run([900] * 5 + [50, 60, 70, 80, 90] + [20, 30, 40, 41, 300] + [100] * 5, [1.5, 0.25, 1.0])
    assert found.median_ms == pytest.approx(40)
    assert found.p95_ms == pytest.approx(41 + 0.8 * 259)
    assert (found.repetitions, found.threads, found.load) == (5, 2, 0.25)
    assert found.busy
    assert clock.seen[:5] == [*PICTURES, *PICTURES[:2]], "in turn"


def test_a_slow_detector_is_timed_five_times_a_round(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONGEST", 1.0)
    _, found = run([700.0] * 20, [0.0] * 3)
    assert (found.repetitions, found.busy) == (5, False)


@pytest.mark.parametrize(
    ("others", "cores", "missing"), [(0.0, 4, 0.0), (1.5, 4, 0.0), (2.5, 4, 0.5), (1.5, 2, 1.5), (-0.1, 2, 0.0)]
)
def test_only_cores_that_the_engine_needs_are_missed(
    others: float, cores: int, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "cores_in_reach", lambda: cores)
    before = timing._Clocks(elapsed=10.0, own=3.0, everyone=100.0)
    after = timing._Clocks(elapsed=12.0, own=6.0, everyone=103.0 + 2 * others)
    assert timing._cores_missing(before, after, threads=2) == missing
    assert timing._cores_missing(before._replace(everyone=None), after, threads=2) is None


def test_on_this_machine_own_work_is_in_the_count() -> None:
    before = timing._Clocks.now()
    while time.process_time() - before.own < 0.3:
        pass
    after = timing._Clocks.now()
    if before.everyone is not None and after.everyone is not None:
        assert after.everyone - before.everyone >= 0.25
