"""Fitting a flow to the features of good images: epochs, checkpoints, resume.

The world hears about it through ``on_epoch(EpochResult)``; nothing here knows a tracker.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam

from csflow.config import FlowConfig, TrainingConfig
from csflow.errors import DataError, ModelError
from csflow.flow.checkpoint import FILE, Json, Progress, load_checkpoint, save_checkpoint
from csflow.flow.cross_scale import CrossScaleFlow, Pyramid
from csflow.flow.device import Features, Feed, Precision, choose_device, choose_precision, feed_device
from csflow.flow.distributed import ALONE, ProcessGroup

DIVERGED = 10.0  # nats a dimension above the untrained flow: the flow is then far worse than none at all
WARM_UP = 0.05  # of all steps, with the cosine schedule
STD_FLOOR = 0.01  # of the scale's root mean square deviation: a dead channel must not become an alarm
UNREAD_STEPS = 64  # steps a GPU may be ahead of the divergence check; many more than it needs to stay busy


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    Attributes:
        epoch: Counted from 1.
        epochs: How many there will be.
        nll: Mean exact negative log-likelihood a dimension over the epoch's batches, in nats.
        grad_norm: Mean gradient norm before clipping.
        seconds: Time the epoch took, interruptions not counted.
        learning_rate: Of the epoch's last step.
    """

    epoch: int
    epochs: int
    nll: float
    grad_norm: float
    seconds: float
    learning_rate: float


def fit(
    features: Features,
    flow: FlowConfig,
    training: TrainingConfig,
    *,
    channels: int,
    scales: int,
    directory: Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    group: ProcessGroup = ALONE,
) -> CrossScaleFlow:
    r"""Train a flow for a fixed number of epochs; the last one is the result.

    .. math:: \mathcal{L} = \frac{1}{B D} \sum_{b=1}^{B} -\log p(y_b)

    The authors' loss, but for a constant that has no gradient: divided by the number ``D`` of latents of an image,
    which decides what a gradient norm of 1 means.

    A checkpoint is written every ``training.checkpoint_seconds``, at the end, and on SIGTERM or SIGINT, after which
    the process exits with 128 + signal. The next call with the same configuration goes on from there, on a CPU with
    exactly the result of an uninterrupted run; an epoch that ended after the last checkpoint is then reported again.
    The last checkpoint stays, for the caller to delete once the flow is in safety.

    With a ``group`` of several processes every one of them calls this with the same arguments and gets the same flow:
    that of one process at the same batch size, up to rounding (:mod:`csflow.flow.distributed`). The first one writes
    the checkpoint, all read it, and any number of processes may resume it; a signal to one of them ends all.

    Args:
        features: Of the good images to fit.
        flow: Shape of the flow.
        training: Optimiser and run length.
        channels: Channels of every level.
        scales: Number of levels.
        directory: Holds the checkpoint; created if needed.
        on_epoch: Called after every epoch, in the first process.
        group: The processes that train together.

    Returns:
        The trained flow on the CPU, in evaluation mode.

    Raises:
        DataError: If there are no features.
        ModelError: If the features do not fit the flow, training diverges, the device is missing, or ``directory``
            holds a damaged checkpoint or one of another configuration.
        SystemExit: After a signal, with the checkpoint written.

    Reference:
        Rudolph et al., section 4.3; loss and clipping as in the authors' code. ``training.averaging``: Polyak and
        Juditsky, "Acceleration of stochastic approximation by averaging", 1992, over the last steps.
    """
    if not len(features):
        raise DataError("There are no images to train on. Add good images, or hold out fewer (roles).")
    device = choose_device(training)
    run = _start(features, flow, training, channels=channels, scales=scales, directory=directory, device=device)
    run.group = group
    feed = feed_device(features, device)
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=run.precision != "float32")
    with _signals() as received, cudnn:
        while run.progress.epoch <= training.epochs:
            _train_epoch(run, feed, training, received)
            if group.first:
                on_epoch(_result(run, training))
            _leave_if_asked(run, received)  # before moving on, so that the resumed run reports this epoch again
            run.progress = Progress(epoch=run.progress.epoch + 1, first_nll=run.progress.first_nll)
            if run.progress.epoch > training.epochs:
                _save(run)
    for name, parameter in run.flow.named_parameters():
        if name in run.average:
            parameter.detach().copy_(run.average[name])
    return run.flow.cpu().eval()


def channel_statistics(
    features: Features, *, arrange: Callable[[Pyramid], Pyramid] = list, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every scale and channel over all images and places.

    Args:
        features: Of the images.
        arrange: What the flow does first with a pyramid.
        batch_size: Images looked at together.

    Returns:
        Two ``(scales, C)`` tensors in float64; deviations are at least ``STD_FLOOR`` of the scale's root mean square.
    """
    sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    squares: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    counts: dict[int, int] = defaultdict(int)
    for start in range(0, len(features), batch_size):
        batch = features.batch(range(start, min(start + batch_size, len(features))))
        for i, level in enumerate(arrange(batch)):
            values = level.double()
            sums[i] = sums[i] + values.sum(dim=(0, 2, 3))
            squares[i] = squares[i] + values.square().sum(dim=(0, 2, 3))
            counts[i] += values.shape[0] * values.shape[2] * values.shape[3]
    count = torch.tensor(list(counts.values()), dtype=torch.float64)[:, None]
    mean = torch.stack(list(sums.values())) / count
    variance = (torch.stack(list(squares.values())) / count - mean.square()).clamp(min=0.0)
    typical = variance.mean(dim=1, keepdim=True).sqrt()
    floor = torch.where(typical > 0, STD_FLOOR * typical, 1.0)
    return mean, variance.sqrt().maximum(floor)


def learning_rate_at(done: int, steps: int, training: TrainingConfig) -> float:
    r"""Learning rate of the step after ``done`` of ``steps``: a function of the place alone, so a run can be resumed.

    .. math:: \eta_k = \tfrac{\eta}{2} \left(1 + \cos \pi \tfrac{k - w}{n - w}\right) \; (k \ge w), \quad
              \eta_k = \eta \tfrac{k + 1}{w + 1} \; (k < w)

    Reference:
        Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts; linear warm-up over the first ``WARM_UP`` of steps.
    """
    if training.schedule == "constant":
        return training.learning_rate
    warm = int(WARM_UP * steps)
    if done < warm:
        return training.learning_rate * (done + 1) / (warm + 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (steps - warm)))


@dataclass(frozen=True)
class _Step:
    """What a step of all processes measured, still on the device."""

    nll: Tensor
    grad_norm: Tensor
    images: int


@dataclass
class _Run:
    """What an epoch changes, and what it needs to do so.

    ``average`` is the mean of the weights of the last steps, by name; empty if the last weights are the result.
    ``unread`` steps have been started but not looked at: reading a number from a GPU waits for all it has to do.
    """

    flow: CrossScaleFlow
    optimizer: Adam
    progress: Progress
    images: int
    device: torch.device
    precision: Precision
    checkpoint: Path
    identity: dict[str, Json]
    saved_at: float
    group: ProcessGroup = ALONE
    average: dict[str, Tensor] = field(default_factory=dict)
    unread: list[_Step] = field(default_factory=list)


def _start(
    features: Features,
    config: FlowConfig,
    training: TrainingConfig,
    *,
    channels: int,
    scales: int,
    directory: Path,
    device: torch.device,
) -> _Run:
    """A fresh run, or the one whose checkpoint lies in ``directory``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        flow = CrossScaleFlow(config, channels=channels, scales=scales)
    flow = flow.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Adam(
        flow.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        fused=True,
    )
    directory.mkdir(parents=True, exist_ok=True)
    run = _Run(
        flow=flow,
        optimizer=optimizer,
        progress=Progress(),
        images=len(features),
        device=device,
        precision=choose_precision(training, device),
        checkpoint=directory / FILE,
        identity=_identity(config, training, channels=channels, scales=scales, images=len(features)),
        saved_at=time.monotonic(),
    )
    if training.averaging is not None:
        run.average = {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}
    if run.checkpoint.exists():
        run.progress = load_checkpoint(run.checkpoint, flow, optimizer, run.identity, run.average)
    elif config.standardize:
        flow.set_standardization(*channel_statistics(features, arrange=flow.arrange))
    return run


def _identity(
    flow: FlowConfig, training: TrainingConfig, *, channels: int, scales: int, images: int
) -> dict[str, Json]:
    """Everything that changes the result. Device and checkpoint interval do not."""
    return {
        "flow": flow.model_dump(mode="json"),
        "training": training.model_dump(mode="json", exclude={"device", "checkpoint_seconds"}),
        "channels": channels,
        "scales": scales,
        "images": images,
    }


def _train_epoch(run: _Run, feed: Feed, training: TrainingConfig, received: Sequence[int]) -> None:
    """All batches of the current epoch that are still to do."""
    # A function of seed and epoch alone: a resumed run needs no generator state to see the same batches.
    order = np.random.default_rng([training.seed, run.progress.epoch]).permutation(run.images).tolist()
    size = training.batch_size
    run.flow.train()
    for start in range(run.progress.step * size, len(order), size):
        began = time.monotonic()
        _set_learning_rate(run, training, start // size)
        run.unread.append(_train_step(run, feed, order[start : start + size], training))
        _average_weights(run, training, start // size)
        last = start + size >= len(order)
        if last or _reads_every_step(run.device) or len(run.unread) >= UNREAD_STEPS:
            _read_steps(run)
        run.progress.seconds += time.monotonic() - began
        _leave_if_asked(run, received)
        if time.monotonic() - run.saved_at >= training.checkpoint_seconds:
            _save(run)


def _set_learning_rate(run: _Run, training: TrainingConfig, step: int) -> None:
    """Of a step of the current epoch, counted from 0."""
    rate = learning_rate_at(*_place(run, training, step), training)
    for group in run.optimizer.param_groups:
        group["lr"] = rate


def _average_weights(run: _Run, training: TrainingConfig, step: int) -> None:
    """Take up the weights after a step of the current epoch, counted from 0, if it is among the last ones."""
    if training.averaging is None:
        return
    done, steps = _place(run, training, step)
    before = done - (steps - math.ceil(training.averaging * steps))  # steps averaged so far
    if before >= 0:
        for name, parameter in run.flow.named_parameters():
            run.average[name].lerp_(parameter.detach(), 1 / (before + 1))


def _place(run: _Run, training: TrainingConfig, step: int) -> tuple[int, int]:
    """Steps before a step of the current epoch, counted from 0, in the whole run; and all steps of the run."""
    each = -(-run.images // training.batch_size)
    return (run.progress.epoch - 1) * each + step, training.epochs * each


def _reads_every_step(device: torch.device) -> bool:
    """A CPU has nothing queued that reading would wait for."""
    return device.type == "cpu"


def _read_steps(run: _Run) -> None:
    """Take up what the steps since the last reading measured."""
    for step in run.unread:
        run.progress = _advance(run.progress, nll=step.nll.item(), grad_norm=step.grad_norm.item(), images=step.images)
    run.unread.clear()


def _save(run: _Run) -> None:
    _read_steps(run)
    if run.group.first:
        save_checkpoint(run.checkpoint, run.flow, run.optimizer, run.progress, run.identity, run.average)
    run.saved_at = time.monotonic()


def _leave_if_asked(run: _Run, received: Sequence[int]) -> None:
    """End with a checkpoint if any process was sent a signal: all of them after the same step.

    Raises:
        SystemExit: With 128 + signal.
    """
    number = run.group.agree(received[0] if received else 0)
    if number:
        _save(run)
        raise SystemExit(128 + number)


def _train_step(run: _Run, feed: Feed, batch: Sequence[int], training: TrainingConfig) -> _Step:
    """One optimiser step on images given by position, without waiting for the device."""
    run.optimizer.zero_grad()
    loss = run.group.sum_gradients(run.flow.parameters(), _backward(run, feed, batch))
    norm = torch.nn.utils.clip_grad_norm_(run.flow.parameters(), training.max_grad_norm)
    run.optimizer.step()
    return _Step(loss, norm, images=len(batch))


def _backward(run: _Run, feed: Feed, batch: Sequence[int]) -> Tensor:
    """Gradients of this process's part of a batch's loss, and this part."""
    share = run.group.share(batch)
    if not share:
        return torch.zeros((), device=run.device)
    pyramid = feed(share)
    with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.precision == "bfloat16"):
        latents, log_det = run.flow(pyramid)
    nll = run.flow.negative_log_likelihood(latents, log_det)
    # In one process the factor is 1.0, which leaves every bit as it is.
    loss = len(share) / len(batch) * run.flow.per_dimension(nll, latents).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _advance(progress: Progress, *, nll: float, grad_norm: float, images: int) -> Progress:
    """Progress after a step.

    Raises:
        ModelError: If the step shows that training diverged.
    """
    first = nll if progress.first_nll is None else progress.first_nll
    if not math.isfinite(nll) or not math.isfinite(grad_norm) or nll > first + DIVERGED:
        raise ModelError(
            f"Training diverged in epoch {progress.epoch}, step {progress.step + 1}: negative log-likelihood "
            f"{nll:.4g} a dimension (at the start {first:.4g}), gradient norm {grad_norm:.4g}. Lower "
            "training.learning_rate or training.max_grad_norm, set training.precision to float32, and check the "
            "features for values that are not finite."
        )
    return replace(
        progress,
        step=progress.step + 1,
        nll_sum=progress.nll_sum + nll * images,
        images=progress.images + images,
        grad_norm_sum=progress.grad_norm_sum + grad_norm,
        first_nll=first,
    )


def _result(run: _Run, training: TrainingConfig) -> EpochResult:
    progress = run.progress
    return EpochResult(
        epoch=progress.epoch,
        epochs=training.epochs,
        nll=progress.nll_sum / progress.images,
        grad_norm=progress.grad_norm_sum / progress.step,
        seconds=progress.seconds,
        learning_rate=run.optimizer.param_groups[0]["lr"],
    )


@contextmanager
def _signals() -> Iterator[Sequence[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them, so that a step and its checkpoint can be finished."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
