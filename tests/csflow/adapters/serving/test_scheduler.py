"""Who is scored when, with whom, and what becomes of the rest: with a stand-in for the detector, without a server."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csflow.adapters.serving import without_arguments
from csflow.detector.engine import CHUNK
from csflow.errors import DataError
from tests.csflow.adapters.serving.stand_ins import BrokenError, Decoder, Engine, Trunk, order

with without_arguments():
    from csflow.adapters.serving import scheduler as module
    from csflow.adapters.serving.errors import DeadlineError, OverloadError
    from csflow.adapters.serving.limits import Limits
    from csflow.adapters.serving.scheduler import Scheduler

Make = Callable[..., Scheduler]


@pytest.fixture
def make() -> Iterator[Make]:
    """A function that makes a scheduler, which is closed at the end."""
    made: list[Scheduler] = []

    def scheduler(workers: int = 1, decode: Any = None, limits: Limits | None = None) -> Scheduler:
        made.append(Scheduler(workers, decode or Decoder(), limits or Limits()))
        return made[-1]

    yield scheduler
    for each in made:
        each.close()


@pytest.fixture
def gated() -> Iterator[Trunk]:
    """A trunk that computes no batch before it is told to."""
    trunk = Trunk(gate=threading.Semaphore(0))
    yield trunk
    open_up(trunk)


def open_up(trunk: Trunk) -> None:
    assert trunk.gate is not None
    trunk.gate.release(10_000)


def occupy(scheduler: Scheduler, trunk: Trunk, workers: int = 1) -> None:
    """Keep the workers busy until the gate is opened once for each."""
    for number in range(workers):
        scheduler.submit(order(Engine(trunk), 900 + number, line="busy"))
        trunk.wait()


def result(future: Future[Any]) -> Any:
    return future.result(timeout=30)


# Fairness


@pytest.mark.parametrize("line", ["b", "a"])
def test_a_large_request_delays_a_single_image_by_the_running_batch_and_one_more(
    make: Make, gated: Trunk, line: str
) -> None:
    scheduler, engine = make(), Engine(gated)
    occupy(scheduler, gated)
    scheduler.submit(order(engine, *range(64)))
    single = scheduler.submit(order(engine, 99, line=line))
    assert gated.gate is not None
    gated.gate.release(2)  # the batch that was running, and one more
    assert result(single) == [990.0]
    assert len(gated.batches[1]) == CHUNK
    assert not gated.batches[2:] or len(gated.batches) == 3  # the third has begun, but not ended


def test_lines_take_turns(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(), Engine(gated)
    occupy(scheduler, gated)
    futures = [
        scheduler.submit(order(engine, *range(10 * index, 10 * index + 6), line=str(index))) for index in range(6)
    ]
    open_up(gated)
    for future in futures:
        result(future)
    taken = [number // 10 for batch in gated.batches[1:] for number in batch]
    assert taken == [0, 1, 2, 3, 4, 5] * 6


def test_requests_of_a_line_take_turns(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(), Engine(gated)
    occupy(scheduler, gated)
    futures = [scheduler.submit(order(engine, *range(10 * index, 10 * index + 4))) for index in range(3)]
    open_up(gated)
    for future in futures:
        result(future)
    assert [number for batch in gated.batches[1:] for number in batch] == [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 13, 23]


def test_a_line_with_another_trunk_keeps_its_turn(make: Make, gated: Trunk) -> None:
    other, engine, scheduler = Trunk(), Engine(gated), make()
    occupy(scheduler, gated)
    for index, line in enumerate("ace"):
        scheduler.submit(order(engine, *range(100 * index, 100 * index + 30), line=line))
    apart = scheduler.submit(order(Engine(other), 7, line="b"))
    assert gated.gate is not None
    gated.gate.release(2)
    assert result(apart) == [70.0]


def test_slow_pictures_of_one_line_hold_up_no_other(make: Make, monkeypatch: pytest.MonkeyPatch, gated: Trunk) -> None:
    monkeypatch.setattr(module, "_SLOW_DECODING", 0.01)
    decode = Decoder(slow=lambda number: number < 100, seconds=0.02)
    scheduler, engine = make(decode=decode), Engine(gated)
    occupy(scheduler, gated)
    slow = scheduler.submit(order(engine, *range(20), line="slow"))
    quick = scheduler.submit(order(engine, *range(200, 206), line="quick"))
    open_up(gated)
    result(quick)
    assert len([number for batch in gated.batches for number in batch if number < 100]) <= 7
    result(slow)


# Batches


def test_lines_with_one_trunk_share_batches_and_others_never(make: Make, gated: Trunk) -> None:
    other = Trunk()
    engines = [Engine(gated, 2.0), Engine(gated, 3.0), Engine(other, 5.0)]
    scheduler = make()
    occupy(scheduler, gated)
    futures = [
        scheduler.submit(order(engine, *range(10 * index, 10 * index + 4), line=str(index)))
        for index, engine in enumerate(engines)
    ]
    open_up(gated)
    for index, (engine, future) in enumerate(zip(engines, futures, strict=True)):
        assert result(future) == [engine.factor * number for number in range(10 * index, 10 * index + 4)]
    assert all(number >= 20 for batch in other.batches for number in batch)
    assert all(number < 20 for batch in gated.batches[1:] for number in batch)
    assert any({number // 10 for number in batch} == {0, 1} for batch in gated.batches)


@pytest.mark.parametrize(("images", "sizes"), [(2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (6, [3, 3]), (8, [4, 4])])
def test_images_are_divided_evenly_among_idle_workers(make: Make, gated: Trunk, images: int, sizes: list[int]) -> None:
    scheduler = make(workers=2)
    time.sleep(0.05)  # both wait
    future = scheduler.submit(order(Engine(gated), *range(images)))
    gated.wait(2)
    assert sorted(map(len, gated.batches), reverse=True) == sizes
    open_up(gated)
    result(future)


def test_what_waits_for_the_only_idle_worker_is_one_batch(make: Make, gated: Trunk) -> None:
    scheduler = make(workers=2)
    occupy(scheduler, gated, workers=2)
    futures = [scheduler.submit(order(Engine(gated), number)) for number in range(3)]
    assert gated.gate is not None
    gated.gate.release()
    gated.wait()
    assert gated.batches[2] == [0, 1, 2]
    open_up(gated)
    wait(futures)


def test_one_image_alone_goes_at_once(make: Make) -> None:
    scheduler, engine = make(workers=2), Engine(Trunk())
    taken = []
    for number in range(50):
        began = time.monotonic()
        assert result(scheduler.submit(order(engine, number))) == [10.0 * number]
        taken.append(time.monotonic() - began)
    assert min(taken) < 0.002


def test_a_batch_is_smaller_where_images_take_long(make: Make) -> None:
    """Whoever comes meanwhile waits for it."""
    scheduler, trunk = make(), Trunk(seconds=0.2)
    result(scheduler.submit(order(Engine(trunk), 0)))
    result(scheduler.submit(order(Engine(trunk), 1, 2, 3)))
    assert trunk.batches == [[0], [1], [2], [3]]
    quick = Trunk(seconds=0.0)
    scheduler = make()
    result(scheduler.submit(order(Engine(quick), 0)))
    result(scheduler.submit(order(Engine(quick), *range(1, 1 + CHUNK))))
    assert quick.batches == [[0], [*range(1, 1 + CHUNK)]]


def test_images_are_not_decoded_before_their_turn(make: Make, gated: Trunk) -> None:
    decode = Decoder()
    scheduler = make(decode=decode)
    occupy(scheduler, gated)
    scheduler.submit(order(Engine(gated), *range(64)))
    time.sleep(0.05)
    assert decode.decoded == [900]
    assert gated.gate is not None
    gated.gate.release()
    gated.wait()
    assert decode.decoded == [900, *range(len(decode.decoded) - 1)]
    assert 1 < len(decode.decoded) <= 1 + CHUNK


def test_slow_decoding_closes_the_batch_and_gives_the_rest_back_in_order(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_DECODING", 0.01)
    decode, trunk = Decoder(slow=lambda number: number % 4 == 1, seconds=0.03), Trunk()
    scheduler = make(decode=decode)
    answered = result(scheduler.submit(order(Engine(trunk), *range(12))))
    assert answered == [10.0 * number for number in range(12)]
    assert decode.decoded == list(range(12))
    assert trunk.batches[0] == [0, 1]
    assert Counter(number for batch in trunk.batches for number in batch) == Counter(range(12))


def test_an_order_that_has_failed_is_not_given_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOW_DECODING", 0.01)
    trunk = Trunk()
    decode = Decoder(slow=lambda number: number == 1, seconds=0.03, breaks=lambda number: number == 1)
    scheduler = make(decode=decode)
    futures = [scheduler.submit(order(Engine(trunk), *numbers)) for numbers in ((0, 1, 2, 3), (10, 11, 12, 13))]
    with pytest.raises(DataError):
        result(futures[0])
    assert result(futures[1]) == [100.0, 110.0, 120.0, 130.0]
    assert scheduler.waiting() == {}


# What goes wrong


def test_a_broken_image_fails_its_own_order_and_is_named(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(decode=Decoder(breaks=lambda number: number == 11)), Engine(gated)
    occupy(scheduler, gated)
    good, bad = scheduler.submit(order(engine, 1, 2)), scheduler.submit(order(engine, 10, 11, 12))
    open_up(gated)
    assert result(good) == [10.0, 20.0]
    with pytest.raises(DataError, match=r"^instances\[1\]: The image is damaged\.$"):
        result(bad)


def test_a_decoder_that_fails_is_no_fault_of_the_others(make: Make, gated: Trunk) -> None:
    def decode(engine: Any, image: Any) -> Any:
        if image.content == b"11":
            raise MemoryError
        return Decoder()(engine, image)

    scheduler, engine = make(decode=decode), Engine(gated)
    occupy(scheduler, gated)
    good, bad = scheduler.submit(order(engine, 1, 2)), scheduler.submit(order(engine, 11, 12))
    open_up(gated)
    assert result(good) == [10.0, 20.0]
    with pytest.raises(MemoryError):
        result(bad)


def test_a_trunk_that_fails_fails_the_orders_of_its_batch_and_the_worker_lives_on(make: Make, gated: Trunk) -> None:
    gated.breaks = lambda number: number == 3
    scheduler, engine = make(), Engine(gated)
    occupy(scheduler, gated)
    first = [scheduler.submit(order(engine, number)) for number in range(4)]
    second = scheduler.submit(order(engine, 4, 5))
    open_up(gated)
    for future in first:
        with pytest.raises(BrokenError, match="trunk"):
            result(future)
    assert result(second) == [40.0, 50.0]


def test_a_model_that_fails_is_no_fault_of_other_lines_in_the_batch(make: Make, gated: Trunk) -> None:
    scheduler = make()
    occupy(scheduler, gated)
    good = scheduler.submit(order(Engine(gated), 1, 2, line="good"))
    bad = scheduler.submit(order(Engine(gated, breaks=lambda number: True), 3, 4, line="bad"))
    open_up(gated)
    assert result(good) == [10.0, 20.0]
    with pytest.raises(BrokenError, match="model"):
        result(bad)
    assert {1, 3} <= set(gated.batches[1])


def test_an_answer_that_cannot_be_written_is_no_fault_of_the_others(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(), Engine(gated)
    occupy(scheduler, gated)
    good, bad = scheduler.submit(order(engine, 1, 2)), scheduler.submit(order(engine, 666))
    open_up(gated)
    assert result(good) == [10.0, 20.0]
    with pytest.raises(BrokenError, match="answer"):
        result(bad)


def test_an_order_that_was_given_back_survives_the_batch_it_was_in(
    make: Make, monkeypatch: pytest.MonkeyPatch, gated: Trunk
) -> None:
    monkeypatch.setattr(module, "_SLOW_DECODING", 0.01)
    gated.breaks = lambda number: number == 1
    scheduler = make(decode=Decoder(slow=lambda number: number == 1, seconds=0.03))
    occupy(scheduler, gated)
    bad, good = scheduler.submit(order(Engine(gated), 1)), scheduler.submit(order(Engine(gated), 2))
    open_up(gated)
    with pytest.raises(BrokenError):
        result(bad)
    assert result(good) == [20.0]


# Clients that do not wait


def test_cancelled_orders_are_not_computed(make: Make, gated: Trunk) -> None:
    decode = Decoder()
    scheduler, engine = make(decode=decode), Engine(gated)
    occupy(scheduler, gated)
    gone = [scheduler.submit(order(engine, *range(10 * index, 10 * index + 8))) for index in range(30)]
    for future in gone:
        assert future.cancel()
    last = scheduler.submit(order(engine, 1000))
    assert scheduler.waiting() == {"a": 1}
    open_up(gated)
    assert result(last) == [10_000.0]
    assert decode.decoded == [900, 1000]


def test_late_orders_are_not_computed_and_say_so(make: Make, gated: Trunk) -> None:
    decode = Decoder()
    scheduler, engine = make(decode=decode), Engine(gated)
    occupy(scheduler, gated)
    late = scheduler.submit(order(engine, *range(8), due=time.monotonic() + 0.02))
    time.sleep(0.05)
    open_up(gated)
    with pytest.raises(DeadlineError):
        result(late)
    assert result(scheduler.submit(order(engine, 1000, due=time.monotonic() + 30))) == [10_000.0]
    assert decode.decoded == [900, 1000]


def test_an_order_that_becomes_late_while_it_is_computed_stops_there(make: Make, gated: Trunk) -> None:
    decode = Decoder()
    scheduler, engine = make(decode=decode), Engine(gated)
    late = scheduler.submit(order(engine, *range(64), due=time.monotonic() + 0.1))
    gated.wait()
    time.sleep(0.15)
    open_up(gated)
    with pytest.raises(DeadlineError):
        result(late)
    result(scheduler.submit(order(engine, 1000)))
    assert decode.decoded == [*range(CHUNK), 1000]


def test_an_idle_worker_keeps_no_images(make: Make) -> None:
    scheduler, engine = make(), Engine(Trunk())
    made = order(engine, 1)
    gone = weakref.ref(made)
    result(scheduler.submit(made))
    del made
    for _ in range(100):
        gc.collect()
        if gone() is None:
            return
        time.sleep(0.01)
    raise AssertionError("an order that was answered is still in memory")


# Bounds


def test_a_line_may_have_half_of_what_may_wait(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(limits=Limits(waiting_images=20)), Engine(gated)
    occupy(scheduler, gated)
    scheduler.submit(order(engine, *range(8), line="a"))
    with pytest.raises(OverloadError, match="8 images of the line wait already") as caught:
        scheduler.submit(order(engine, *range(3), line="a"))
    assert caught.value.retry_after >= 1
    scheduler.submit(order(engine, *range(2), line="a"))
    scheduler.submit(order(engine, *range(9), line="b"))
    with pytest.raises(OverloadError):
        scheduler.submit(order(engine, 1, 2, line="c"))  # 19 wait in all
    scheduler.submit(order(engine, 1, line="c"))
    assert scheduler.waiting() == {"a": 10, "b": 9, "c": 1}


def test_the_expected_wait_is_bounded_and_told(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(limits=Limits(waiting_seconds=1.6)), Engine(Trunk(seconds=0.1))
    result(scheduler.submit(order(engine, 0)))  # now it is known that an image takes 0.1 s, or more if it is busy here
    occupy(scheduler, gated)
    for _ in range(2):
        scheduler.submit(order(engine, *range(9)))
    with pytest.raises(OverloadError, match=r"would wait for about [2-4] s") as caught:
        scheduler.submit(order(engine, *range(9)))
    assert 2 <= (caught.value.retry_after or 0) <= 4
    scheduler.submit(order(engine, 1))  # waits for one image of each request before it
    scheduler.submit(order(engine, 1, line="b"))


def test_many_quiet_lines_do_not_count_as_busy_ones(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(limits=Limits(waiting_seconds=3.0)), Engine(Trunk(seconds=0.1))
    result(scheduler.submit(order(engine, 0)))
    occupy(scheduler, gated)
    for index in range(5):
        scheduler.submit(order(engine, index, line=f"quiet {index}"))
    scheduler.submit(order(engine, *range(8)))
    scheduler.submit(order(engine, *range(8)))  # after 8 of its own line and 5 others: 1.3 s


def test_what_was_cancelled_does_not_count(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(limits=Limits(waiting_images=20)), Engine(gated)
    occupy(scheduler, gated)
    for _ in range(50):
        assert scheduler.submit(order(engine, *range(10))).cancel()


# The end


def test_closing_answers_what_is_computed_and_refuses_what_waits(make: Make, gated: Trunk) -> None:
    scheduler, engine = make(), Engine(gated)
    running = scheduler.submit(order(engine, 1, 2))
    gated.wait()
    partly = scheduler.submit(order(engine, 3))
    waiting = scheduler.submit(order(engine, *range(10, 20), line="b"))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    for future in (partly, waiting):
        with pytest.raises(OverloadError, match="stopping"):
            result(future)
    open_up(gated)
    assert result(running) == [10.0, 20.0]
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(OverloadError, match="stopping"):
        scheduler.submit(order(engine, 1))


def test_closing_while_images_are_decoded_answers_everybody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLOW_DECODING", 0.01)
    decode, trunk = Decoder(slow=lambda number: True, seconds=0.1), Trunk()
    scheduler = make(decode=decode)
    first, second = scheduler.submit(order(Engine(trunk), 1)), scheduler.submit(order(Engine(trunk), 2, 3))
    while not decode.decoded:
        time.sleep(0.001)
    scheduler.close()
    assert result(first) == [10.0]
    with pytest.raises(OverloadError, match="stopping"):
        result(second)


# Whatever happens, in any order

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("abc"), st.integers(1, 9), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("pause"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=25,
)


class Trial:
    """A scheduler with three lines, two of which share a trunk; some images are broken, some break what computes."""

    def __init__(self, workers: int, broken: set[int]) -> None:
        self.decode = Decoder(slow=lambda n: n % 5 == 0, breaks=lambda n: n in broken and n % 3 == 0, seconds=0.002)
        breaks = lambda n: n in broken and n % 3 == 1  # noqa: E731
        shared, own = Trunk(breaks=breaks, seconds=0.001), Trunk(breaks=breaks)
        model = lambda n: n in broken and n % 3 == 2  # noqa: E731
        self.engines = {
            "a": Engine(shared, 2.0, model),
            "b": Engine(shared, 3.0, model),
            "c": Engine(own, 5.0, model),
        }
        self.trunks = [shared, own]
        self.scheduler = Scheduler(workers, self.decode, Limits(waiting_images=60))
        self.broken = broken
        self.orders: list[tuple[str, list[int], Future[Any]]] = []
        self.ends: Counter[int] = Counter()
        self.number = 0

    def submit(self, line: str, images: int, hurried: bool) -> None:
        numbers = list(range(self.number, self.number + images))
        self.number += images
        due = time.monotonic() + 0.003 if hurried else float("inf")
        try:
            future = self.scheduler.submit(order(self.engines[line], *numbers, line=line, due=due))
        except OverloadError:
            return
        index = len(self.orders)
        future.add_done_callback(lambda _: self.ends.update([index]))
        self.orders.append((line, numbers, future))

    def wait(self) -> None:
        until = time.monotonic() + 30
        while not all(future.done() for _, _, future in self.orders):
            assert time.monotonic() < until, "somebody is not answered"
            time.sleep(0.001)

    def check(self) -> None:
        batches = [batch for trunk in self.trunks for batch in trunk.batches]
        assert all(len(batch) <= CHUNK for batch in batches)
        computed = Counter(number for batch in batches for number in batch)
        assert max(computed.values(), default=1) == 1, "an image was computed twice"
        assert max(Counter(self.decode.decoded).values(), default=1) == 1, "an image was decoded twice"
        together = {number: set(batch) for batch in batches for number in batch}
        for index, (line, numbers, future) in enumerate(self.orders):
            assert future.done()
            assert self.ends[index] == 1
            try:
                found = future.result()
            except (CancelledError, DeadlineError, OverloadError):
                continue
            except DataError:
                assert any(number in self.broken and number % 3 == 0 for number in numbers)
            except BrokenError:
                near = set().union(*(together.get(number, set()) for number in numbers))
                assert near & self.broken, "failed although nothing near it was broken"
            else:
                assert found == [self.engines[line].factor * number for number in numbers]
                assert not self.broken & set(numbers)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.sets(st.integers(0, 150), max_size=8), st.integers(1, 3), st.booleans())
def test_every_order_has_one_end_and_the_right_answers(
    actions: list[tuple[Any, ...]], broken: set[int], workers: int, closed_early: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLOW_DECODING", 0.001)
        trial = Trial(workers, broken)
        for name, *details in actions:
            if name == "submit":
                trial.submit(*details)
            elif name == "pause":
                time.sleep(details[0] / 1000)
            elif trial.orders:
                trial.orders[details[0] % len(trial.orders)][2].cancel()
        if not closed_early:
            trial.wait()
        trial.scheduler.close()
        trial.check()
        if not closed_early:
            assert not any(
                isinstance(future.exception(), OverloadError) for _, _, future in trial.orders if not future.cancelled()
            )
