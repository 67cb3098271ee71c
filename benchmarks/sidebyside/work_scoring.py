"""Measure the works about a finished detector: scoring, loading, the size of its file."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping
from statistics import median, quantiles
from typing import Any

from sidebyside.errors import largest_relative
from sidebyside.process import by_turns
from sidebyside.session import OURS, Peer, Session, medians

SINGLES = 20
"""Least number of single images to score, because the 95th percentile needs some."""


def score(session: Session) -> None:
    """Measure one image and a batch, from encoded bytes to score, decision and map."""
    settings, works = session.settings, session.settings.works
    batch = [i % settings.images for i in range(settings.score_batch)]
    with session.together("ours-scoring", session.peers) as workers:
        for worker in workers.values():
            worker.call("load")
            worker.call("score", indices=list(range(settings.images)))  # warm-up; every image has an answer
        singles: dict[str, list[float]] = {name: [] for name in workers}
        if "score_one" in works:
            for i in range(max(SINGLES, 4 * settings.repeats)):
                for name, worker in workers.items():
                    singles[name].append(worker.call("score", indices=[i % settings.images]))
        batches: dict[str, float] = {}
        if "score_batch" in works:
            turns = {n: functools.partial(w.seconds, "score", indices=batch) for n, w in workers.items()}
            batches = medians(by_turns(turns, settings.repeats))
        answers = {name: worker.call("answers") for name, worker in workers.items()}
    accuracy = _accuracy(session, answers)
    if "score_one" in works:
        session.add("score_one (p50)", "ms", {n: 1e3 * median(t) for n, t in singles.items()}, accuracy)
        session.add("score_one (p95)", "ms", {n: 1e3 * quantiles(t, n=20)[-1] for n, t in singles.items()}, accuracy)
    if "score_batch" in works:
        rates = {name: len(batch) / elapsed for name, elapsed in batches.items()}
        session.add(f"score_batch ({len(batch)} images)", "images/s", rates, accuracy)


def load(session: Session) -> None:
    """Measure the time to a first score, in a new process every time, and the reading of the files alone."""
    whole: dict[str, list[float]] = {}
    reading: dict[str, list[float]] = {}
    for _ in range(max(1, session.settings.repeats // 2)):
        for peer in (None, *session.peers):
            name = peer.name if peer else OURS
            began = time.perf_counter()
            with session.peer(peer) if peer else session.ours("ours-scoring") as worker:
                reading.setdefault(name, []).append(worker.call("load"))
                worker.call("score", indices=[0])
                whole.setdefault(name, []).append(time.perf_counter() - began)
    session.add("load (process start to first score)", "s", medians(whole))
    session.add("load (files to detector, imports done)", "s", medians(reading))


def model_file(session: Session) -> None:
    """Compare the megabytes of the flow's file; the scores of a detector read from it are those of ``score``."""
    peers = [peer for peer in session.peers if peer.whole]
    with session.ours("ours-scoring") as worker:
        sizes = {OURS: worker.call("model_megabytes")}
        worker.call("load")
        worker.call("score", indices=list(range(session.settings.images)))
        accuracy = _accuracy(session, {OURS: worker.call("answers")})
    sizes |= {peer.name: _saved(session, peer) for peer in peers}
    session.add("model_file", "MB", sizes, accuracy)


def _saved(session: Session, peer: Peer) -> float:
    with session.peer(peer) as worker:
        megabytes: float = worker.call("save_model")
        return megabytes


def _accuracy(session: Session, answers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the largest error of a score and the share of changed decisions, against the float32 torch pipeline."""
    right = json.loads((session.folder / "reference.json").read_text())
    accuracy: dict[str, dict[str, float]] = {}
    for name, answer in answers.items():
        scores = [answer["scores"][str(i)] for i in range(len(right["scores"]))]
        error = largest_relative(scores, right["scores"]) if all(map(math.isfinite, scores)) else math.inf
        if name != OURS:
            accuracy[name] = {"scores of the peer": error}
            continue
        decisions = [answer["decisions"][str(i)] for i in range(len(right["decisions"]))]
        other = sum(a != b for a, b in zip(decisions, right["decisions"], strict=True))
        accuracy[name] = {"scores": error, "decisions": other / len(decisions)}
    return accuracy
