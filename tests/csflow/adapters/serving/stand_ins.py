"""A detector that computes with the numbers in its images, and notes what it was asked; for tests of the scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from csflow.adapters.serving import without_arguments
from csflow.detector.prediction import Prediction
from csflow.errors import DataError

with without_arguments():
    from csflow.adapters.serving.orders import Order
    from csflow.adapters.serving.requests import RequestedImage


class BrokenError(Exception):
    """What a stand-in raises when it is told to."""


@dataclass
class Picture:
    """A decoded image: a number."""

    number: int
    size: tuple[int, int] = (1, 1)


@dataclass(eq=False)
class Trunk:
    """Notes its batches; ``gate`` holds it up until released, once a batch."""

    gate: threading.Semaphore | None = None
    breaks: Callable[[int], bool] = lambda number: False
    seconds: float = 0.0
    batches: list[list[int]] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def compute(self, images: Sequence[Any]) -> list[Any]:
        numbers = [int(levels[0]) for levels in images]
        self.batches.append(numbers)
        self.begun.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=30)
        time.sleep(self.seconds)
        if any(self.breaks(number) for number in numbers):
            raise BrokenError("trunk")
        return [np.array(numbers, float)]

    def wait(self, batches: int = 1) -> None:
        """Wait until this many further batches have begun."""
        for _ in range(batches):
            assert self.begun.acquire(timeout=30)


@dataclass(eq=False)
class Engine:
    """Scores a number as its multiple."""

    trunk: Trunk
    factor: float = 10.0
    breaks: Callable[[int], bool] = lambda number: False

    def sized(self, picture: Picture) -> Any:
        return (picture.number,)

    def judge(self, activations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        assert len(activations[0]) == len(sizes)
        if any(self.breaks(int(number)) for number in activations[0]):
            raise BrokenError("model")
        empty = np.zeros((1, 1), np.float32)
        return [Prediction(self.factor * x, None, None, None, empty, (1, 1), []) for x in activations[0]]


@dataclass
class Decoder:
    """Notes what it decodes; takes ``seconds`` for the slow."""

    slow: Callable[[int], bool] = lambda number: False
    breaks: Callable[[int], bool] = lambda number: False
    seconds: float = 0.05
    decoded: list[int] = field(default_factory=list)

    def __call__(self, engine: Any, image: RequestedImage) -> Any:
        number = int(image.content)
        self.decoded.append(number)
        if self.slow(number):
            time.sleep(self.seconds)
        if self.breaks(number):
            raise DataError("The image is damaged.")
        return Picture(number)


def order(engine: Engine, *numbers: int, line: str = "a", due: float = float("inf")) -> Order:
    """An order of images with these numbers; its answers are their scores."""
    images = [RequestedImage(str(number).encode()) for number in numbers]
    return Order(line, engine, images, _score, path="instances[{}]", due=due)  # type: ignore[arg-type]


def _score(prediction: Prediction, image: RequestedImage) -> float:
    if image.content.startswith(b"666"):
        raise BrokenError("answer")
    return prediction.score
