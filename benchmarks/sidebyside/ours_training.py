"""Measure csflow's training, through ``csflow.flow.training.fit_flow`` alone."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from csflow.config import FlowConfig, TrainingConfig
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features, choose_precision
from csflow.flow.pyramid import Pyramid
from csflow.flow.training import EpochResult, fit_flow
from sidebyside.bench import Bench
from sidebyside.child import Channel, Memory, kept_for_gradients, warm_torch
from sidebyside.errors import relative_error

if TYPE_CHECKING:
    from torch import Tensor

ENDLESS = 10**6
LOSS_OFFSET = 0.5 * math.log(2 * math.pi)
"""Constant of the exact negative log-likelihood, which the authors' loss leaves out."""


class Driver:
    """Driver that trains on one batch (an epoch is then a step), or on the store."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.bench = Bench(folder)
        self.settings = self.bench.settings
        self.channel = channel
        self.device = torch.device(self.settings.device)
        self.memory_above: dict[str, float] = {}
        warm_torch(self.device)

    def training(self, source: str) -> None:
        """Train, answer after every epoch, and wait for ``step`` (go on) or anything else (stop).

        Answers hold the seconds since ``step`` was asked for and the authors' loss of the epoch.
        """
        features = self._features(source)
        memory = Memory(self.device)
        asked_at: list[float] = []

        def on_epoch(result: EpochResult) -> None:
            self._synchronise()
            # Building the flow is not part of the first step.
            elapsed = time.perf_counter() - asked_at[-1] if asked_at else result.seconds
            self.channel.send(value={"seconds": elapsed, "loss": result.nll - LOSS_OFFSET})
            request = self.channel.receive()
            if request is None or request["call"] != "step":
                raise _Stopped
            asked_at.append(time.perf_counter())

        with contextlib.suppress(_Stopped):
            self._fit(features, ENDLESS, on_epoch)
        self.memory_above = {"total": memory.peak()}

    def memory(self) -> dict[str, float]:
        """Return the peak megabytes of the last training, above the use when it began."""
        return self.memory_above

    def train(self) -> dict[str, float]:
        """Measure the seconds of a whole training on the stored features."""
        features, losses = self._features("store"), []
        began = time.perf_counter()
        self._fit(features, self.settings.epochs, lambda result: losses.append(result.nll - LOSS_OFFSET))
        self._synchronise()
        return {"seconds": time.perf_counter() - began, "loss": losses[-1] - self._standardisation()}

    def latent_error(self) -> float:
        """Measure the relative error of the latents, in the precision of training, against float64."""
        reference = self.bench.pyramid("latents")
        latents, _ = self._forward(self._awake(), len(reference[0]))
        return relative_error(latents, reference)

    def kept(self) -> float:
        """Measure the megabytes that a forward pass keeps for the backward pass, parameters not counted."""
        flow = self._awake()
        with kept_for_gradients(flow) as megabytes:
            latents, log_det = self._forward(flow, self.settings.batch)
            flow.per_dimension(flow.negative_log_likelihood(latents, log_det), latents).mean()
            return megabytes()

    def _awake(self) -> CrossScaleFlow:
        """Return the flow with the weights for comparing scores, as training keeps it."""
        state = self.bench.tensors("flow")
        channels = state["blocks.0.permutation"].shape[1]
        flow = CrossScaleFlow(self._flow(), channels=channels, scales=self.settings.scales)
        flow.load_state_dict(state)
        placed: CrossScaleFlow = flow.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed.train()

    def _forward(self, flow: CrossScaleFlow, images: int) -> tuple[Pyramid, Tensor]:
        batch = [level[:images].to(self.device) for level in self.bench.pyramid("features")]
        precision = choose_precision(self._training(1), self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            found: tuple[Pyramid, Tensor] = flow(batch)
        return found

    def store_read(self) -> float:
        """Measure the GB/s of float16 values read from the store in shuffled batches."""
        features = self._features("store")
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0)).tolist()
        size, values = self.settings.batch, 0
        began = time.perf_counter()
        for start in range(0, len(order), size):
            values += sum(level.numel() for level in features.batch(order[start : start + size]))
        return 2 * values / (time.perf_counter() - began) / 1e9

    def _standardisation(self) -> float:
        """Return what standardisation inside the flow adds to the loss; peers get standardised features."""
        std = self.bench.tensors("scale")["std"].double().log().sum(dim=1)
        levels = [level[0] for level in self.bench.pyramid("features")]
        added = sum(float(s) * level[0].numel() for s, level in zip(std, levels, strict=True))
        return added / sum(level.numel() for level in levels)

    def _features(self, source: str) -> Features:
        if source == "batch":
            return InMemory([level[: self.settings.batch] for level in self.bench.pyramid("features")])
        from sidebyside.materials import stored

        manifest = stored(self.bench)
        return manifest.open(manifest.entries)

    def _fit(self, features: Features, epochs: int, on_epoch: Any) -> None:
        channels = features.batch([0])[0].shape[1]
        with tempfile.TemporaryDirectory() as folder:
            fit_flow(
                features,
                self._flow(standardize=not isinstance(features, InMemory)),
                self._training(epochs),
                channels=channels,
                scales=self.settings.scales,
                directory=Path(folder),
                on_epoch=on_epoch,
            )

    def _flow(self, *, standardize: bool = False) -> FlowConfig:
        return FlowConfig(hidden=self.settings.width, standardize=standardize)

    def _training(self, epochs: int) -> TrainingConfig:
        """Return the optimiser of the authors' code: Adam's usual betas, eps 1e-4."""
        return TrainingConfig(
            epochs=epochs,
            batch_size=self.settings.batch,
            betas=(0.9, 0.999),
            eps=1e-4,
            seed=self.settings.seed,
            precision=self.settings.precision,  # type: ignore[arg-type]
            device=self.settings.device,  # type: ignore[arg-type]
            checkpoint_seconds=1e9,
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class InMemory:
    """The features of a batch, in memory as float32."""

    def __init__(self, levels: list[Tensor]) -> None:
        self.levels = levels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return the levels of some images."""
        return [level[list(indices)] for level in self.levels]


class _Stopped(Exception):
    """No further step is wanted."""
