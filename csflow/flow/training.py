r"""Fit a flow to the features of good images: epochs, checkpoints, resumption.

The loss is that of the authors, but for a constant that has no gradient:

.. math:: \mathcal{L} = \frac{1}{B D} \sum_{b=1}^{B} -\log p(y_b)

It is divided by the number ``D`` of latents of an image, which decides what a gradient norm of 1 means.

A checkpoint is written every ``training.checkpoint_seconds``, at the end, and on SIGTERM or SIGINT, after which the
process exits with 128 + signal. The next call with the same configuration resumes from there, on a CPU with exactly the
result of an uninterrupted run, and reports all epochs again, since the checkpoint remembers them. A damaged checkpoint
is put aside, and training starts over. The last checkpoint stays, for the caller to delete once the flow is saved
elsewhere.

In a group of several processes each one calls :func:`fit_flow` with the same arguments and gets the same flow: that of
one process at the same batch size, up to rounding (:mod:`csflow.flow.distributed`). The first process writes the
checkpoint, all read it, and any number of processes may resume it; a signal to one of them ends all.

Callers follow the training through ``on_epoch(EpochResult)``; this module knows nothing about trackers.

Reference:
    Rudolph et al., section 4.3; loss and clipping as in the authors' code. ``training.averaging``: Polyak and
    Juditsky, "Acceleration of stochastic approximation by averaging", 1992, over the last steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from csflow.config import FlowConfig, TrainingConfig
from csflow.errors import DataError
from csflow.flow.checkpoint import EpochResult as EpochResult
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features, Feed, feed_device
from csflow.flow.distributed import ALONE, ProcessGroup
from csflow.flow.held_out import HeldOut
from csflow.flow.stop_signals import collect_stop_signals
from csflow.flow.training_run import UNREAD_STEPS, TrainingRun, start_run


def fit_flow(
    features: Features,
    flow: FlowConfig,
    training: TrainingConfig,
    *,
    channels: int,
    scales: int,
    directory: Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    group: ProcessGroup = ALONE,
    held_out: Features | None = None,
) -> CrossScaleFlow:
    """Train a flow for a fixed number of epochs; the last epoch is the result.

    Args:
        features: Of the good images to fit.
        flow: Shape of the flow.
        training: Optimiser and run length.
        channels: Channels of every level.
        scales: Number of levels.
        directory: For the checkpoint; created if needed.
        on_epoch: Called after every epoch, in the first process; after a resumption first for the epochs before it.
        group: The processes that train together.
        held_out: Of good images that are not fitted, whose likelihood is measured after some epochs.

    Returns:
        The trained flow on the CPU, in evaluation mode.

    Raises:
        DataError: If there are no features.
        ModelError: If features or checkpoint do not fit, training diverges, or the device is missing or wrong.
        SystemExit: After a signal, with the checkpoint written.
    """
    if not len(features):
        raise DataError("There are no images to train on. Add good images, or hold out fewer (roles).")
    run = start_run(features, flow, training, channels=channels, scales=scales, directory=directory, group=group)
    feed = feed_device(features, run.device)
    watched = HeldOut.on(run.device, held_out) if group.first else None
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=run.precision != "float32")
    _report(run, on_epoch, [replace(result, again=True) for result in run.progress.finished])
    with collect_stop_signals() as received, cudnn:
        while run.progress.epoch <= training.epochs:
            _train_epoch(run, feed, received)
            result = _result(run, watched)
            _report(run, on_epoch, [result])
            run.leave_if_asked(received)
            run.progress = run.progress.after(result)
            if run.progress.epoch > training.epochs:
                run.save()
    return run.finish()


def _report(run: TrainingRun, on_epoch: Callable[[EpochResult], None], results: Sequence[EpochResult]) -> None:
    """Report epochs, in the first process alone."""
    for result in results if run.group.first else ():
        on_epoch(result)


def _train_epoch(run: TrainingRun, feed: Feed, received: Sequence[int]) -> None:
    """Train on the remaining batches of the current epoch."""
    # A function of seed and epoch alone: a resumed run needs no generator state to see the same batches.
    order = np.random.default_rng([run.training.seed, run.progress.epoch]).permutation(run.images).tolist()
    size = run.training.batch_size
    run.flow.train()
    for start in range(run.progress.step * size, len(order), size):
        began = time.monotonic()
        run.take_step(feed, start // size, order[start : start + size])
        last = start + size >= len(order)
        if last or run.reads_every_step or len(run.unread) >= UNREAD_STEPS:
            run.read_steps()
        run.progress.seconds += time.monotonic() - began
        run.leave_if_asked(received)
        if time.monotonic() - run.saved_at >= run.training.checkpoint_seconds:
            run.save()


def _result(run: TrainingRun, watched: HeldOut | None) -> EpochResult:
    progress = run.progress
    return EpochResult(
        epoch=progress.epoch,
        epochs=run.training.epochs,
        nll=progress.nll_sum / progress.images,
        grad_norm=progress.grad_norm_sum / progress.step,
        seconds=progress.seconds,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        held_out_nll=watched.nll(run) if watched and watched.is_due(progress.epoch, run.training.epochs) else None,
    )
