"""Measure anomalib's CS-Flow, run by the interpreter of an environment that has it (made for version 2.7.0).

Its feature extractor would download weights, and its flow knows only that extractor's 304 channels: the trunk is
replaced by ours and the number by the trunk's. Its Lightning module is left out, which only saves it time.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from anomalib.models.image.csflow import torch_model
from anomalib.models.image.csflow.loss import CsFlowLoss
from torch import Tensor, nn

from sidebyside.child import Channel
from sidebyside.peers.flow_peer import FlowPeer
from sidebyside.weights import to_anomalib

CLAMP = 3


class Driver(FlowPeer):
    """Driver of anomalib's flow with our weights and permutations, its loss, its optimiser and gradient clipping."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        super().__init__(folder, channel)
        self.loss = CsFlowLoss()

    def version(self) -> str:
        """Return the version of the package."""
        return metadata.version("anomalib")

    def build(self, weights: str) -> nn.Module:
        """Return their model with our weights under their names."""
        state = self.bench.tensors(weights)
        channels, size = state["blocks.0.permutation"].shape[1], self.settings.size
        model: nn.Module = _flow(channels, size, self.settings.width)
        model.load_state_dict(to_anomalib(state))
        for block, permute in enumerate(m for m in model.modules() if isinstance(m, torch_model.ParallelPermute)):
            orders = state[f"blocks.{block}.permutation"]
            permute.perm, permute.perm_inv = list(orders), [order.argsort() for order in orders]
        return model

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser as their code configures it."""
        return torch.optim.Adam(model.parameters(), lr=2e-4, eps=1e-04, weight_decay=1e-5, betas=(0.5, 0.9))

    def latents_and_loss(self, levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents of their forward pass and the value of their loss."""
        latents, jacobian = self.model(levels)
        return list(latents), self.loss(latents, jacobian)

    def train_batch(self, levels: list[Tensor]) -> float:
        """Take one optimiser step in the order of their training loop."""
        self.optimizer.zero_grad()
        _, loss = self.latents_and_loss([level.to(self.device) for level in levels])
        value = loss.item()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return value


def _flow(channels: int, size: int, width: int) -> Any:
    original = torch_model.InputNode
    try:
        torch_model.InputNode = lambda count, *sides, **names: original(channels, *sides, **names)
        return torch_model.CrossScaleFlow((3, size, size), 4, CLAMP, width)
    finally:
        torch_model.InputNode = original
