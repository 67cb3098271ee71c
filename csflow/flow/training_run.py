"""The state of one training run, and what a step, a checkpoint and a resumption do to it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam

from csflow.config import FlowConfig, TrainingConfig
from csflow.errors import DamagedFileError, ModelError
from csflow.flow.checkpoint import (
    CHECKPOINT_FILE,
    Json,
    TrainingProgress,
    check_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features, Feed, Precision, choose_device, choose_precision
from csflow.flow.distributed import ProcessGroup
from csflow.flow.gradient_check import require_sound_gradients
from csflow.flow.learning_rate import learning_rate_at
from csflow.flow.standardization import channel_statistics
from csflow.system.seals import put_aside

DIVERGED = 10.0  # nats a dimension above the untrained flow: the flow is then far worse than none at all
UNREAD_STEPS = 64  # steps a GPU may be ahead of the divergence check; many more than it needs to stay busy


@dataclass(frozen=True)
class StepResult:
    """The measurements of one step over all processes, still on the device.

    Attributes:
        nll: Mean negative log-likelihood a dimension of the batch, in nats; a scalar.
        grad_norm: Gradient norm before clipping; a scalar.
        images: Images of the batch.
    """

    nll: Tensor
    grad_norm: Tensor
    images: int


@dataclass
class TrainingRun:
    """A flow in training, with everything that an epoch reads and changes.

    Attributes:
        flow: On ``device``.
        optimizer: Over the parameters of ``flow``.
        training: Optimiser and run length.
        progress: Position in the run.
        images: Number of images to fit.
        device: Where the flow is.
        precision: Of the forward pass.
        checkpoint: The checkpoint file.
        identity: What is trained; a checkpoint of anything else is refused.
        saved_at: Monotonic time of the last checkpoint, in seconds.
        group: The processes that train together.
        average: Mean of the weights after the last steps, by name; empty if the last weights are the result.
        unread: Steps that were started but not read: reading a number from a GPU waits for all that is queued there.
    """

    flow: CrossScaleFlow
    optimizer: Adam
    training: TrainingConfig
    progress: TrainingProgress
    images: int
    device: torch.device
    precision: Precision
    checkpoint: Path
    identity: dict[str, Json]
    saved_at: float
    group: ProcessGroup
    average: dict[str, Tensor] = field(default_factory=dict)
    unread: list[StepResult] = field(default_factory=list)

    @property
    def reads_every_step(self) -> bool:
        """Return True on a CPU, which has nothing queued that reading would wait for."""
        return self.device.type == "cpu"

    def take_step(self, feed: Feed, step: int, batch: Sequence[int]) -> None:
        """Take one optimiser step, without waiting for the device.

        Args:
            feed: Gives the features of images.
            step: Index of the step in the current epoch, from 0.
            batch: Indices of the images.
        """
        rate = learning_rate_at(*self._position(step), self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.group.sum_gradients(self.flow.parameters(), self._backward(feed, batch))
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.unread.append(StepResult(loss, norm, images=len(batch)))
        self._average_weights(step)

    def read_steps(self) -> None:
        """Add the measurements of the steps since the last reading to the progress.

        Raises:
            ModelError: If one of them shows that training diverged.
        """
        for step in self.unread:
            nll, grad_norm = step.nll.item(), step.grad_norm.item()
            self.progress = _advance(self.progress, nll=nll, grad_norm=grad_norm, images=step.images)
        self.unread.clear()

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        self.read_steps()
        if self.group.first:
            save_checkpoint(self.checkpoint, self.flow, self.optimizer, self.progress, self.identity, self.average)
        self.saved_at = time.monotonic()

    def leave_if_asked(self, received: Sequence[int]) -> None:
        """Write a checkpoint and exit if any process received a signal; all processes do so after the same step.

        Args:
            received: Signals that this process received.

        Raises:
            SystemExit: With 128 + signal.
        """
        number = self.group.agree(received[0] if received else 0)
        if number:
            self.save()
            raise SystemExit(128 + number)

    def finish(self) -> CrossScaleFlow:
        """Return the trained flow on the CPU, in evaluation mode, with its averaged weights if there are any."""
        for name, parameter in self.flow.named_parameters():
            if name in self.average:
                parameter.detach().copy_(self.average[name])
        return self.flow.cpu().eval()

    def _position(self, step: int) -> tuple[int, int]:
        """Count the steps of the whole run before a step of the current epoch, and all steps of the run."""
        each = -(-self.images // self.training.batch_size)
        return (self.progress.epoch - 1) * each + step, self.training.epochs * each

    def _backward(self, feed: Feed, batch: Sequence[int]) -> Tensor:
        """Compute the gradients of this process's part of a batch's loss, and return this part."""
        share = self.group.share(batch)
        if not share:
            return torch.zeros((), device=self.device)
        pyramid = feed(share)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            latents, log_det = self.flow(pyramid)
        nll = self.flow.negative_log_likelihood(latents, log_det)
        # In one process the factor is 1.0, which leaves every bit as it is.
        loss = len(share) / len(batch) * self.flow.per_dimension(nll, latents).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _average_weights(self, step: int) -> None:
        """Add the weights after a step of the current epoch to the average if it is one of the last steps."""
        if self.training.averaging is None:
            return
        done, steps = self._position(step)
        before = done - (steps - math.ceil(self.training.averaging * steps))  # steps averaged so far
        if before >= 0:
            for name, parameter in self.flow.named_parameters():
                self.average[name].lerp_(parameter.detach(), 1 / (before + 1))


def start_run(
    features: Features,
    config: FlowConfig,
    training: TrainingConfig,
    *,
    channels: int,
    scales: int,
    directory: Path,
    group: ProcessGroup,
) -> TrainingRun:
    """Start a training run, or resume the one whose checkpoint is in ``directory``.

    A damaged checkpoint is put aside, and the run starts over.

    Args:
        features: Of the good images to fit.
        config: Shape of the flow.
        training: Optimiser and run length.
        channels: Channels of every level.
        scales: Number of levels.
        directory: For the checkpoint; created if needed.
        group: The processes that train together.

    Raises:
        ModelError: If the device is missing or computes wrong gradients, or features or checkpoint do not fit the
            configuration.
    """
    device = choose_device(training)
    require_sound_gradients(device)
    flow = _drawn(config, channels, scales, training.seed)
    flow = flow.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    directory.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(
        flow=flow,
        optimizer=_optimizer(flow, training),
        training=training,
        progress=TrainingProgress(),
        images=len(features),
        device=device,
        precision=choose_precision(training, device),
        checkpoint=directory / CHECKPOINT_FILE,
        identity=_identity(config, training, channels=channels, scales=scales, images=len(features)),
        saved_at=time.monotonic(),
        group=group,
    )
    if training.averaging is not None:
        run.average = {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}
    if not _resumed(run) and config.standardize:
        flow.set_standardization(*channel_statistics(features, arrange=flow.arrange))
    return run


def _drawn(config: FlowConfig, channels: int, scales: int, seed: int) -> CrossScaleFlow:
    """Return a flow with random weights that depend on the seed alone; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CrossScaleFlow(config, channels=channels, scales=scales)


def _resumed(run: TrainingRun) -> bool:
    """Load the checkpoint if there is one that all processes can read; the first one puts a damaged one aside."""
    if not run.group.agree(int(run.checkpoint.exists())):
        return False
    why = ""
    try:
        check_checkpoint(run.checkpoint)
    except DamagedFileError as error:
        why = str(error)
    if run.group.agree(int(bool(why))):
        if run.group.first:
            put_aside(run.checkpoint, why or f"Another process cannot read {run.checkpoint}.")
        return False
    run.progress = load_checkpoint(run.checkpoint, run.flow, run.optimizer, run.identity, run.average)
    return True


def _optimizer(flow: CrossScaleFlow, training: TrainingConfig) -> Adam:
    return Adam(
        flow.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _identity(
    flow: FlowConfig, training: TrainingConfig, *, channels: int, scales: int, images: int
) -> dict[str, Json]:
    """Collect everything that changes the result. The device and the checkpoint interval do not."""
    return {
        "flow": flow.model_dump(mode="json"),
        "training": training.model_dump(mode="json", exclude={"device", "checkpoint_seconds"}),
        "channels": channels,
        "scales": scales,
        "images": images,
    }


def _advance(progress: TrainingProgress, *, nll: float, grad_norm: float, images: int) -> TrainingProgress:
    """Return the progress after a step.

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
