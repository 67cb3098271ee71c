"""Measure the works about training: a step, its memory, an epoch, a whole run, and reading the store."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import median

from sidebyside.process import Worker, by_turns
from sidebyside.rows import Row
from sidebyside.session import OURS, Session, medians

ADAM_BYTES = 12
"""A parameter's weight and two moments, float32."""

RESOLUTION = 2.0**-22
"""Sum of the rounding of four float32 losses between 0.5 and 2; a first step reduces the loss by 2e-6."""

PAPER = {"epochs": 240, "images": 209, "size": 768, "width": 1024}
PAPER_SECONDS = 45 * 60
"""Rudolph et al., WACV 2022, section 4.3: one class of MVTec AD on an RTX 2080 Ti."""


def train_step(session: Session) -> None:
    """Measure steps on one batch alternately, then memory, loss and latents of the same processes."""
    settings, works = session.settings, session.settings.works
    with session.together("ours-training", session.peers) as workers:
        losses: dict[str, list[float]] = {name: [] for name in workers}
        first = {name: _epoch(worker, losses[name], "training", source="batch") for name, worker in workers.items()}
        steps = {name: functools.partial(_epoch, worker, losses[name], "step") for name, worker in workers.items()}
        times = medians(by_turns(steps, settings.repeats))
        for worker in workers.values():
            worker.call("stop")
        peaks = {name: worker.call("memory")["total"] for name, worker in workers.items()}
        errors = {name: worker.call("latent_error") for name, worker in workers.items()}
        kept = {name: worker.call("kept") for name, worker in workers.items()}
    accuracy = {OURS: {"latents": errors[OURS]}}
    for peer in session.peers:
        accuracy[peer.name] = {"latents of the peer": errors[peer.name]}
        if peer.whole:  # anomalib's loss sums the log-determinants of a batch and its Adam has other betas
            accuracy[peer.name]["learned"] = _difference(losses[OURS], losses[peer.name])
    if "train_step" in works:
        session.add("train_step", "s", times, accuracy)
        session.add("train_step (first)", "s", first)
        session.add_fraction("train_step", session.facts["step_flops"], times[OURS], session.facts["precision"])
    if "memory" in works:
        state = session.facts["parameters"] * ADAM_BYTES / 1e6
        session.add("memory (training step)", "MB", peaks)
        session.add("memory (kept from forward to backward)", "MB", kept)
        session.add("memory (beyond weights and Adam)", "MB", {name: peak - state for name, peak in peaks.items()})


def epoch(session: Session) -> None:
    """Measure epochs over all stored features alternately."""
    peers = [peer for peer in session.peers if peer.whole]
    with session.together("ours-training", peers) as workers:
        for worker in workers.values():
            worker.call("training", source="store")
        steps = {name: functools.partial(_epoch, worker, [], "step") for name, worker in workers.items()}
        times = medians(by_turns(steps, session.settings.repeats))
        for worker in workers.values():
            worker.call("stop")
    session.add(f"epoch ({session.settings.images} images from the store)", "s", times)


def train(session: Session) -> None:
    """Measure a whole training, once each."""
    peers = [peer for peer in session.peers if peer.whole]
    settings = session.settings
    with session.together("ours-training", peers) as workers:
        results = {name: worker.call("train") for name, worker in workers.items()}
    name = f"train ({settings.epochs} epochs, {settings.images} images)"
    accuracy = {
        peer.name: {
            "final loss": abs(results[OURS]["loss"] - results[peer.name]["loss"]) / abs(results[peer.name]["loss"])
        }
        for peer in peers
    }
    session.add(name, "s", {who: result["seconds"] for who, result in results.items()}, accuracy)
    like_paper = all(getattr(settings, key) == value for key, value in PAPER.items())
    if like_paper and "efficientnet_b5" in settings.backbone:
        session.rows.append(Row(name, results[OURS]["seconds"], "s", PAPER_SECONDS, "paper (RTX 2080 Ti)"))


def store_read(session: Session) -> None:
    """Measure shuffled batches from the store; the first pass only warms the page cache."""
    with session.ours("ours-training") as worker:
        worker.call("store_read")
        rate = median(worker.call("store_read") for _ in range(session.settings.repeats))
    session.rows.append(Row("store_read (float16 on disk to float32)", rate, "GB/s"))
    if "copy" in session.facts:
        session.rows.append(
            Row("store_read (part of the memory copy's rate)", rate / session.facts["copy"], "of limit")
        )


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the relative difference in how far the loss fell from the first step to the last.

    The loss itself would hide a wrong optimiser, because a few steps hardly change it.
    """
    fell, expected = ours[0] - ours[-1], theirs[0] - theirs[-1]
    return max(0.0, abs(fell - expected) - RESOLUTION) / abs(expected)


def _epoch(worker: Worker, losses: list[float], method: str, **arguments: str) -> float:
    """Run one epoch of a worker, record its loss, and return the seconds."""
    result = worker.call(method, **arguments)
    losses.append(result["loss"])
    seconds: float = result["seconds"]
    return seconds
