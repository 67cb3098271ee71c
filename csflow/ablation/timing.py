"""Time the served form of a detector per image, and measure how busy other processes kept the machine meanwhile."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csflow.config import Section
from csflow.system.cores import BUSY, busy_seconds, cores, cores_in_reach

if TYPE_CHECKING:
    from PIL import Image

    from csflow.detector.engine import Engine

UNTIMED_IMAGES = 5
"""Images that are predicted before timing starts."""

ROUNDS = 3
"""Rounds of timing, of which the fastest counts."""

REPETITIONS = 60
"""Images timed in each round."""

LONGEST = 10.0
"""Seconds after which a round stops, but not before five images."""

TIMED_IMAGES = 8
"""Number of different images that are predicted in turn."""


class Timing(Section):
    """The time that the served form takes for one decoded image.

    Attributes:
        median_ms: Median over the repetitions, in milliseconds.
        p95_ms: 95 % quantile over the repetitions, in milliseconds.
        repetitions: Number of images timed after warming up.
        threads: Number of cores it could use.
        machine: The machine it was measured on, see :func:`machine`.
        load: How many of the cores it could use were kept busy by other processes meanwhile; None if not known.
    """

    median_ms: float
    p95_ms: float
    repetitions: int
    threads: int
    machine: str
    load: float | None

    @property
    def busy(self) -> bool:
        """Tell if other processes used so much of the machine that the time is too long."""
        return self.load is not None and self.load > BUSY


def time_served(directory: Path, pictures: Sequence[Image.Image]) -> Timing:
    """Time the serving engine with one decoded image at a time on all cores that this process may use.

    Resizing, backbone, model, map and score count; reading and decoding the file do not. Other processes can only make
    it slower, so of several rounds the one with the lowest median is nearest to the detector's own time.

    Args:
        directory: The detector directory.
        pictures: Images to predict in turn.
    """
    from csflow.detector.engine import Engine

    engine = Engine.load(directory)
    for index in range(UNTIMED_IMAGES):
        engine.predict([pictures[index % len(pictures)]])
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
    """Name the processor and the number of cores that this process may use, without the host name."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores"


class _Clocks(NamedTuple):
    """Seconds elapsed, CPU seconds of this process, and CPU seconds of all processes on the cores it may use."""

    elapsed: float
    own: float
    everyone: float | None

    @classmethod
    def now(cls) -> _Clocks:
        return cls(time.perf_counter(), time.process_time(), busy_seconds())


def _round(engine: Engine, pictures: Sequence[Image.Image]) -> tuple[list[float], float | None]:
    """Time the images of one round.

    Returns:
        The milliseconds of each image, and how many of the engine's cores other processes kept busy.
    """
    taken: list[float] = []
    before = _Clocks.now()
    began = before.elapsed
    while len(taken) < REPETITIONS and (len(taken) < 5 or time.perf_counter() - began < LONGEST):
        start = time.perf_counter()
        engine.predict([pictures[len(taken) % len(pictures)]])
        taken.append(1000 * (time.perf_counter() - start))
    return taken, _cores_missing(before, _Clocks.now(), engine.threads)


def _cores_missing(before: _Clocks, after: _Clocks, threads: int) -> float | None:
    """Compute how many of the ``threads`` cores other processes kept busy; None if the system does not report it.

    The load average is no substitute: for a minute it still counts a training that has just ended.
    """
    if before.everyone is None or after.everyone is None:
        return None
    others = (after.everyone - before.everyone - (after.own - before.own)) / (after.elapsed - before.elapsed)
    return round(max(0.0, others - (cores_in_reach() - threads)), 2)
