"""Score the images of many clients in batches, fairly and within bounds, in the threads of a few workers.

Images wait in a queue of their line, by request. A worker that is free takes a batch: one image of each line in turn,
and within a line one image of each request in turn, so that a request of 64 images delays nobody by more than a batch.
Lines whose detectors share a trunk share batches. A batch is what waits at that moment, so that a server with little to
do adds no delay; images are decoded when their turn has come, not before.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from csflow.adapters.serving.decoding import Sized
from csflow.adapters.serving.errors import OverloadError
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.orders import Item, Order, score
from csflow.adapters.serving.requests import RequestedImage
from csflow.detector.engine import CHUNK, Engine

_SLOW_DECODING = 0.1
"""Seconds of decoding after which a batch takes no further image: the others may be quicker elsewhere."""

_LONGEST_BATCH = 0.15
"""Seconds that a batch may take, or as long as one image: whoever comes meanwhile waits for it."""

_WEIGHT = 0.1
"""Weight of the last batch in the running mean of seconds an image."""

Decode = Callable[[Engine, RequestedImage], Sized]


class Scheduler:
    """Queues and workers.

    Args:
        workers: Number of threads that score.
        decode: Decodes and sizes one image of a line, or raises :class:`csflow.errors.DataError`.
        limits: What may wait.
    """

    def __init__(self, workers: int, decode: Decode, limits: Limits) -> None:
        self._decode = decode
        self._limits = limits
        self._changed = threading.Condition()
        self._lines: OrderedDict[str, deque[Order]] = OrderedDict()
        self._closed = False
        self._idle = 0
        self._seconds_an_image = 0.0
        self._workers = [
            threading.Thread(target=self._work, name=f"score-{number}", daemon=True) for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, order: Order) -> Future[list[object]]:
        """Queue an order; cancelling the future drops what has not been computed.

        Raises:
            OverloadError: If too much waits, or the server is stopping.
        """
        with self._changed:
            if self._closed:
                raise OverloadError("The server is stopping.", 1.0)
            self._drop_what_is_over()
            self._refuse_excess(order)
            self._lines.setdefault(order.line, deque()).append(order)
            self._changed.notify(len(order.images))
        return order.future

    def waiting(self) -> dict[str, int]:
        """Return the number of images that wait, by line."""
        with self._changed:
            return {line: _count(orders) for line, orders in self._lines.items()}

    def close(self) -> None:
        """Finish what is being computed, fail what waits, and end the workers."""
        with self._changed:
            self._closed = True
            for order in [order for orders in self._lines.values() for order in orders]:
                order.fail(OverloadError("The server is stopping.", 1.0))
            self._lines.clear()
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _refuse_excess(self, order: Order) -> None:
        counts = {line: _count(orders) for line, orders in self._lines.items()}
        own, number = counts.pop(order.line, 0), len(order.images)
        # By turns: each other request of the line, and each other line, gets as many as this one until it is done.
        ahead = sum(min(len(each.pending), number) for each in self._lines.get(order.line, ()))
        images = ahead + sum(min(count, ahead + number) for count in counts.values())
        seconds = images * self._seconds_an_image / len(self._workers)
        most = self._limits.waiting_images
        if own + number > most // 2 or own + number + sum(counts.values()) > most:
            raise OverloadError(f"{own} images of the line wait already. Try again later.", seconds)
        if seconds > self._limits.waiting_seconds:
            raise OverloadError(f"The images would wait for about {seconds:.0f} s. Try again later.", seconds)

    def _drop_what_is_over(self) -> None:
        for line, orders in list(self._lines.items()):
            kept = deque(order for order in orders if not order.is_over())
            if kept:
                self._lines[line] = kept
            else:
                del self._lines[line]

    def _work(self) -> None:
        while batch := self._next_batch():
            self._process(batch)
            del batch  # an idle worker keeps no images

    def _process(self, batch: Sequence[Item]) -> None:
        began = time.monotonic()
        ready = self._decoded(batch, began)
        score(ready)
        if ready:
            self._note((time.monotonic() - began) / len(ready))

    def _note(self, seconds: float) -> None:
        with self._changed:
            before = self._seconds_an_image
            self._seconds_an_image = before + _WEIGHT * (seconds - before) if before else seconds

    def _next_batch(self) -> list[Item]:
        """Wait for images, and take some; an empty batch means that the scheduler was closed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed:
                    self._drop_what_is_over()
                    if batch := self._taken():
                        return batch
                    self._changed.wait()
                return []
            finally:
                self._idle -= 1

    def _taken(self) -> list[Item]:
        waiting = sum(_count(orders) for orders in self._lines.values())
        most = min(self._largest_batch(), -(-waiting // self._idle))  # the rest is for the others that are idle
        batch: list[Item] = []
        passed: list[tuple[str, deque[Order]]] = []  # lines of another trunk keep their turn
        while len(batch) < most and self._lines:
            line, orders = self._lines.popitem(last=False)
            if batch and orders[0].engine.trunk is not batch[0].order.engine.trunk:
                passed.append((line, orders))
                continue
            order = orders.popleft()
            batch.append(Item(order, order.pending.popleft()))
            if order.pending:
                orders.append(order)
            if orders:
                self._lines[line] = orders
        for line, orders in reversed(passed):
            self._put_first(line, orders)
        return batch

    def _largest_batch(self) -> int:
        """Return the number of images of a batch that is over in time, by how long images have taken."""
        in_time = _LONGEST_BATCH / self._seconds_an_image if self._seconds_an_image else CHUNK
        return max(1, min(CHUNK, int(in_time)))

    def _put_first(self, line: str, orders: deque[Order]) -> None:
        self._lines[line] = orders
        self._lines.move_to_end(line, last=False)

    def _decoded(self, batch: Sequence[Item], began: float) -> list[Item]:
        """Decode the images of a batch; those that are left when it has taken long go back to the queue."""
        ready: list[Item] = []
        for position, item in enumerate(batch):
            if ready and time.monotonic() - began > _SLOW_DECODING:
                self._give_back(batch[position:])
                break
            if item.order.is_over() or not item.read(self._decode, self._limits.request_pixels):
                continue
            ready.append(item)
        return ready

    def _give_back(self, items: Sequence[Item]) -> None:
        with self._changed:
            if self._closed:
                for item in items:
                    item.order.fail(OverloadError("The server is stopping.", 1.0))
                return
            for item in reversed(items):  # they are the next, or slow images of others could hold them up for ever
                order, orders = item.order, self._lines.get(item.order.line, deque())
                if order.is_over():
                    continue
                if order.pending:
                    orders.remove(order)
                order.pending.appendleft(item.index)
                orders.appendleft(order)
                self._put_first(order.line, orders)
            self._changed.notify(len(items))


def _count(orders: Sequence[Order]) -> int:
    return sum(len(order.pending) for order in orders)
