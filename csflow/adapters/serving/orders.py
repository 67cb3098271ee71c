"""Hold the images of one request until each has been scored, and score those of a batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from csflow.adapters.serving.decoding import Sized
from csflow.adapters.serving.errors import DeadlineError
from csflow.adapters.serving.requests import RequestedImage
from csflow.detector.engine import Engine
from csflow.detector.prediction import Prediction
from csflow.detector.trunk import Levels
from csflow.errors import DataError

Answer = Callable[[Prediction, RequestedImage], object]


@dataclass
class Phases:
    """Seconds that a request spent in each phase, added up over its images; on several cores they overlap.

    Attributes:
        wait: From its arrival until its first image was taken.
        decode: Decoding and resizing.
        compute: Its share of the batches.
        encode: Boxes, heat-maps and values for the client.
    """

    wait: float = 0.0
    decode: float = 0.0
    compute: float = 0.0
    encode: float = 0.0


class Order:
    """The images of one request, all of one line.

    Args:
        line: Name of the line.
        engine: Scores them.
        images: What the client sent.
        answer: Turns the prediction for one image into what the client gets.
        path: Names an image in errors; ``{}`` is its index.
        due: Time (``time.monotonic``) after which nobody waits for the answers any more.

    Attributes:
        future: Gets the answers, or the first error.
        phases: Where the time went.
        pending: Indices of the images that no worker has taken.
    """

    def __init__(
        self,
        line: str,
        engine: Engine,
        images: Sequence[RequestedImage],
        answer: Answer,
        *,
        path: str = "{}",
        due: float = float("inf"),
    ) -> None:
        self.line, self.engine, self.images, self.path, self.due = line, engine, images, path, due
        self.future: Future[list[object]] = Future()
        self.phases = Phases()
        self.pending = deque(range(len(images)))
        self._answer = answer
        self._arrived = time.monotonic()
        self._answers: dict[int, object] = {}
        self._pixels = 0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Note that a worker has begun with it."""
        with self._lock:
            if not self.phases.wait:
                self.phases.wait = time.monotonic() - self._arrived

    def spend(self, *, decode: float = 0.0, compute: float = 0.0) -> None:
        """Add seconds to the phases; several workers may have images of it."""
        with self._lock:
            self.phases.decode += decode
            self.phases.compute += compute

    def count_pixels(self, width: int, height: int, most: int) -> None:
        """Add the pixels of an image.

        Raises:
            DataError: If the images have too many pixels together.
        """
        with self._lock:
            self._pixels += width * height
            if self._pixels > most:
                raise DataError(
                    f"with it the images of the request have {self._pixels} pixels, expected at most {most}. "
                    "Send fewer in a request."
                )

    def answer(self, index: int, prediction: Prediction) -> None:
        """Add the answer for one image; the last one completes the order."""
        began = time.monotonic()
        found = self._answer(prediction, self.images[index])
        with self._lock:
            self.phases.encode += time.monotonic() - began
            self._answers[index] = found
            complete = len(self._answers) == len(self.images)
        if complete:
            with suppress(InvalidStateError):  # cancelled, or failed
                self.future.set_result([self._answers[each] for each in range(len(self.images))])

    def fail(self, error: BaseException) -> None:
        """Give up with an error, unless it is over already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def is_over(self) -> bool:
        """Return True if its answers are of no use any more: it has failed, was cancelled, or is late."""
        if time.monotonic() > self.due:
            self.fail(DeadlineError())
        return self.future.done()


@dataclass(eq=False)
class Item:
    """One image of an order that a worker has taken.

    Attributes:
        order: The order.
        index: Of the image.
        levels: The image, sized for the trunk.
        size: Width and height before.
    """

    order: Order
    index: int
    levels: Levels = ()
    size: tuple[int, int] = (0, 0)

    def read(self, decode: Callable[[Engine, RequestedImage], Sized], most_pixels: int) -> bool:
        """Decode and size the image; if that is impossible, the order fails and False is returned.

        Args:
            decode: Decodes and sizes.
            most_pixels: Pixels of all images of an order at most.
        """
        order, began = self.order, time.monotonic()
        order.take()
        try:
            self.levels, self.size = decode(order.engine, order.images[self.index])
            order.count_pixels(*self.size, most_pixels)
        except DataError as error:
            order.fail(DataError(f"{order.path.format(self.index)}: {error}"))
        except BaseException as error:  # a worker lives on whatever happens
            order.fail(error)
        order.spend(decode=time.monotonic() - began)
        return not order.is_over()


def score(items: Sequence[Item]) -> None:
    """Score sized images whose detectors share a trunk, and add the answers to their orders.

    What goes wrong fails the orders that it concerns, and no other.
    """
    if not items:
        return
    began = time.monotonic()
    try:
        activations = items[0].order.engine.trunk.compute([item.levels for item in items])
    except BaseException as error:
        _fail(items, error)
        return
    engines = {item.order.engine: None for item in items}  # each once, in a fixed order
    judged: dict[Item, Prediction] = {}
    for engine in engines:
        rows = [row for row, item in enumerate(items) if item.order.engine is engine]
        own = activations if len(engines) == 1 else [each[rows] for each in activations]
        try:
            predictions = engine.judge(own, [items[row].size for row in rows])
        except BaseException as error:
            _fail([items[row] for row in rows], error)
            continue
        judged |= {items[row]: prediction for row, prediction in zip(rows, predictions, strict=True)}
    seconds = (time.monotonic() - began) / len(items)
    for item, prediction in judged.items():
        item.order.spend(compute=seconds)
        try:
            item.order.answer(item.index, prediction)
        except BaseException as error:
            item.order.fail(error)


def _fail(items: Sequence[Item], error: BaseException) -> None:
    for item in items:
        item.order.fail(error)
