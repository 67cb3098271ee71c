"""Collect the values of a training's epochs and write them a few at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from csflow.adapters.mlflow.page import stored_metric

if TYPE_CHECKING:
    from csflow.flow.training import EpochResult

_LARGEST_BATCH = 1000  # number of metrics that MLflow accepts in one request


class Point(NamedTuple):
    """One value of a metric; ``time`` in milliseconds since 1970."""

    metric: str
    value: float
    time: int
    epoch: int

    @classmethod
    def now(cls, name: str, value: float, epoch: int = 0) -> Point:
        """Make a point of the present time, under the name that MLflow stores."""
        return cls(stored_metric(name), float(value), int(time.time() * 1000), epoch)


class Curves:
    """The curves of one training.

    Args:
        write: Writes points to the tracker.
        every: Shortest time between two writes, in seconds, so that the tracker does not slow down short epochs.
    """

    def __init__(self, write: Callable[[Sequence[Point]], None], every: float) -> None:
        self._write, self._every = write, every
        self._waiting: list[Point] = []
        self._written = time.monotonic()

    def add(self, result: EpochResult) -> None:
        """Add an epoch, and write what waits if it is time."""
        values = {
            "train_nll": result.nll,
            "train_grad_norm": result.grad_norm,
            "train_epoch_seconds": result.seconds,
            "train_learning_rate": result.learning_rate,
        }
        if result.held_out_nll is not None:
            values["train_held_out_nll"] = result.held_out_nll
        self._waiting += [Point.now(name, value, result.epoch) for name, value in values.items()]
        if time.monotonic() - self._written >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for start in range(0, len(self._waiting), _LARGEST_BATCH):
            self._write(self._waiting[start : start + _LARGEST_BATCH])
        self._waiting.clear()
        self._written = time.monotonic()
