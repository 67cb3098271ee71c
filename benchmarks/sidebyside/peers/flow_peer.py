"""The common part of measuring the authors' code and anomalib."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidebyside.bench import Bench
from sidebyside.child import Channel, Memory, kept_for_gradients, warm_torch
from sidebyside.errors import relative_error
from sidebyside.plain import plain_scores


class FlowPeer(ABC):
    """Driver that trains and scores with another implementation of the flow, from our weights."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.bench = Bench(folder)
        self.settings = self.bench.settings
        self.device = torch.device(self.settings.device)
        self.contents: list[bytes] = []
        self.scored: dict[int, float] = {}

    @abstractmethod
    def build(self, weights: str) -> nn.Module:
        """Return their model on the CPU with the weights of that name."""

    @abstractmethod
    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return their optimiser as they configure it."""

    @abstractmethod
    def latents_and_loss(self, levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents and the loss that their code computes from features on the device."""

    @abstractmethod
    def train_batch(self, levels: list[Tensor]) -> float:
        """Take one optimiser step as in their training loop and return the loss."""

    def batches(self, source: str) -> Iterable[list[Tensor]]:
        """Return the batches of an epoch; the source ``batch`` gives a single one."""
        return [[level[: self.settings.batch] for level in self.bench.pyramid("features")]]

    def training(self, source: str) -> dict[str, float]:
        """Make the model and the optimiser and run the first epoch."""
        data = self.batches(source)
        warm_torch(self.device)
        self._measured = Memory(self.device)
        self.model = self.build("start").to(self.device)
        self.optimizer = self.new_optimizer(self.model)
        self.model.train()
        self.data = data
        return self.step()

    def step(self) -> dict[str, float]:
        """Run one epoch and return its seconds and mean loss."""
        began = time.perf_counter()
        losses = [self.train_batch(list(levels)) for levels in self.data]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - began, "loss": sum(losses) / len(losses)}

    def stop(self) -> None:
        """End the training."""
        self._peak = {"total": self._measured.peak()}

    def memory(self) -> dict[str, float]:
        """Return the peak megabytes of the last training, above the use when it began."""
        return self._peak

    def train(self) -> dict[str, float]:
        """Measure the seconds of a whole training on the stored features."""
        warm_torch(self.device)
        began = time.perf_counter()
        result = self.training("store")
        for _ in range(self.settings.epochs - 1):
            result = self.step()
        return {**result, "seconds": time.perf_counter() - began}

    def latent_error(self) -> float:
        """Measure the relative error of their latents against float64."""
        reference = self.bench.pyramid("latents")
        self.model = self.build("flow").to(self.device).train()
        levels = [level[: len(reference[0])].to(self.device) for level in self.bench.pyramid("features")]
        return relative_error(self.latents_and_loss(levels)[0], reference)

    def kept(self) -> float:
        """Measure the megabytes that a forward pass keeps for the backward pass, parameters not counted."""
        self.model = self.build("flow").to(self.device).train()
        levels = [level[: self.settings.batch].to(self.device) for level in self.bench.pyramid("features")]
        with kept_for_gradients(self.model) as megabytes:
            self.latents_and_loss(levels)
            return megabytes()

    def load(self) -> float:
        """Read trunk and flow from their files and return the seconds, without imports."""
        from sidebyside.peers.eager import Trunk

        began = time.perf_counter()
        self.trunk = Trunk(self.bench).to(self.device)
        scale = self.bench.tensors("scale")
        self.mean, self.std = (scale[name].to(self.device)[:, :, None, None] for name in ("mean", "std"))
        self.model = self.load_model().to(self.device).eval()
        elapsed = time.perf_counter() - began
        self.contents = [path.read_bytes() for path in self.bench.images]
        return elapsed

    def load_model(self) -> nn.Module:
        """Load a trained model in their way."""
        return self.build("flow")

    @torch.no_grad()
    def score(self, indices: list[int]) -> float:
        """Measure the seconds from encoded images to score, decision and map in the image's size."""
        began = time.perf_counter()
        images = self.trunk.decode([self.contents[i] for i in indices]).to(self.device)
        features = self.trunk(images)
        levels = [(level - mean) / std for level, mean, std in zip(features, self.mean, self.std, strict=True)]
        latents, _ = self.latents_and_loss(levels)
        scores = plain_scores(latents).cpu().tolist()
        squares = latents[0].square().sum(dim=1, keepdim=True)
        side = (self.settings.size, self.settings.size)
        F.interpolate(squares, size=side, mode="bilinear", align_corners=False).cpu().numpy()
        self.scored |= dict(zip(indices, scores, strict=True))
        return time.perf_counter() - began

    def answers(self) -> dict[str, Any]:
        """Return the scores so far, by image."""
        return {"scores": self.scored}
