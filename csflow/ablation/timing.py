"""How long the served form of a detector takes for one image, and how busy the machine was with other things."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csflow.ablation.tradeoff import Timing

if TYPE_CHECKING:
    from PIL import Image

    from csflow.detector.engine import Engine

WARM_UP, ROUNDS, REPETITIONS, LONGEST = 5, 3, 60, 10.0
"""Images not counted, rounds of which the fastest counts, images timed in each, and the seconds after which a round
stops (but not before five images)."""

_STAT = Path("/proc/stat")


def time_served(directory: Path, pictures: Sequence[Image.Image]) -> Timing:
    """Time the engine that serves, one decoded image at a time, on all cores this process may use.

    Sizing, trunk, model, map and score count; reading and decoding the file do not. Other processes can only make it
    slower, so of several rounds the one with the lowest median is nearest to what the detector takes.
    """
    from csflow.detector.engine import Engine

    engine = Engine.load(directory)
    for place in range(WARM_UP):
        engine.predict([pictures[place % len(pictures)]])
    taken, load = min((_round(engine, pictures) for _ in range(ROUNDS)), key=lambda each: statistics.median(each[0]))
    return Timing(
        median_ms=statistics.median(taken),
        p95_ms=float(np.quantile(taken, 0.95)),
        repetitions=len(taken),
        threads=engine.threads,
        machine=machine(),
        load=load,
    )


def machine() -> str:
    """Processor and number of cores this process may use; no host name."""
    from csflow.system.cores import cores

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores"


class _Clocks(NamedTuple):
    """Seconds that passed, that this process computed, and that all processes did on the cores it may use."""

    passed: float
    own: float
    everyone: float | None

    @classmethod
    def now(cls) -> _Clocks:
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())


def _round(engine: Engine, pictures: Sequence[Image.Image]) -> tuple[list[float], float | None]:
    """Milliseconds of each image, and how many of the engine's cores others kept busy."""
    taken: list[float] = []
    before = _Clocks.now()
    began = before.passed
    while len(taken) < REPETITIONS and (len(taken) < 5 or time.perf_counter() - began < LONGEST):
        start = time.perf_counter()
        engine.predict([pictures[len(taken) % len(pictures)]])
        taken.append(1000 * (time.perf_counter() - start))
    return taken, _cores_missing(before, _Clocks.now(), engine.threads)


def _cores_missing(before: _Clocks, after: _Clocks, threads: int) -> float | None:
    """How many of the cores that ``threads`` threads need others kept busy; None where the system does not tell.

    The load average would not do: for a minute it still counts a training that has just ended.
    """
    from csflow.system.cores import cores

    if before.everyone is None or after.everyone is None:
        return None
    others = (after.everyone - before.everyone - (after.own - before.own)) / (after.passed - before.passed)
    return round(max(0.0, others - (cores() - threads)), 2)


def _busy_seconds() -> float | None:
    """What was computed since the start on the cores this process may use, by anyone; None if not on Linux."""
    if not _STAT.exists():
        return None
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in _STAT.read_text().splitlines()]
    # user, nice, system, then idle and iowait, which are none; irq, softirq, and steal: what other guests took.
    ticks = sum(int(word) for name, *words in lines if name in usable for word in (*words[:3], *words[5:8]))
    return ticks / os.sysconf("SC_CLK_TCK")
