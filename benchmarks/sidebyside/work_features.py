"""Measure the works about features: extraction, and a retrain on unchanged and on grown data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from sidebyside.process import Worker, by_turns
from sidebyside.rows import Row
from sidebyside.session import OURS, Peer, Session, medians

EAGER = "eager timm float32"
FULL = "extraction of all"
GROWTH = 1.1


def extract(session: Session) -> None:
    """Measure extraction from image files to features; ours also hashes and stores them."""
    settings = session.settings
    eager = Peer(EAGER, sys.executable, "timm")
    with session.together("ours-features", [eager]) as workers:
        first = {OURS: workers[OURS].call("fresh"), EAGER: workers[EAGER].call("extract")}
        turns = {name: functools.partial(worker.seconds, "extract") for name, worker in workers.items()}
        times = medians(by_turns(turns, settings.repeats))
        flops = workers[EAGER].call("flops") * settings.images
        turns = {
            OURS: functools.partial(workers[OURS].seconds, "decode"),
            EAGER: functools.partial(workers[EAGER].seconds, "decode"),
        }
        decoding = medians(by_turns(turns, settings.repeats))
        error = workers[OURS].call("error")
    rates = {name: settings.images / elapsed for name, elapsed in times.items()}
    session.add("extract (files to stored features)", "images/s", rates, {OURS: {"features": error}})
    session.add("extract (first, whatever has to be prepared)", "s", first)
    computing = {name: settings.images / max(times[name] - decoding[name], 1e-9) for name in times}
    session.add("extract (decoding and sizing subtracted)", "images/s", computing)
    session.add_fraction("extract", flops, times[OURS], "float32")


def retrain(session: Session) -> None:
    """Measure repeated extraction, when nothing has changed and when a tenth of the images is new."""
    works, count = session.settings.works, session.settings.images
    before = min(round(count / GROWTH), count - 1)
    with session.ours("ours-features") as worker:
        worker.call("fresh")
        turns: dict[str, Callable[[], float]] = {
            FULL: functools.partial(worker.seconds, "extract"),
            "unchanged": functools.partial(worker.seconds, "again"),
            "grown": lambda: _grown(worker, before),
        }
        times = medians(by_turns(turns, session.settings.repeats))
    if "retrain" in works:
        session.rows.append(Row("retrain (extraction, unchanged)", times["unchanged"], "s", times[FULL], FULL))
    if "grow" in works:
        name = f"grow ({count - before} of {count} images new)"
        session.rows.append(Row(name, times["grown"], "s", times[FULL], FULL))


def _grown(worker: Worker, before: int) -> float:
    worker.call("extract", images=before)
    return worker.seconds("again")
