"""Measure the authors' code, imported from the user's checkout (github.com/marco-rudolph/cs-flow, 88a13b8).

Nothing of it is copied here: model, loss, datasets and loaders are theirs; the order of calls follows their train.py,
whose loop cannot be imported.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.peers.flow_peer import FlowPeer
from sidebyside.weights import to_official

MODEL_FILE = "official.model"


class Driver(FlowPeer):
    """Driver of their model with our weights, in their training loop and their evaluation."""

    def __init__(self, folder: Path, channel: Channel, checkout: str) -> None:
        super().__init__(folder, channel)
        self.config, self.theirs, self.utils = _import_theirs(Path(checkout), self.bench)

    def build(self, weights: str) -> nn.Module:
        """Return their model with our weights under their names."""
        model: nn.Module = self.theirs.get_cs_flow_model(self.config.n_feat)
        state = self.bench.tensors(weights)
        model.load_state_dict(to_official(state))
        return model

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser as their code configures it."""
        return torch.optim.Adam(model.parameters(), lr=self.config.lr_init, eps=1e-04, weight_decay=1e-5)

    def latents_and_loss(self, levels: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents of their forward pass and the value of their loss."""
        latents, jacobian = self.theirs.nf_forward(self.model, levels)
        return latents, self.utils.get_loss(latents, jacobian)

    def train_batch(self, levels: Any) -> float:
        """Take one optimiser step in the order of their training loop."""
        self.optimizer.zero_grad()
        inputs, _ = self.utils.preprocess_batch(levels)
        _, loss = self.latents_and_loss(inputs)
        value = float(self.utils.t2np(loss))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return value

    def batches(self, source: str) -> Iterable[Any]:
        """Return one batch in the form that their loader gives, or their loader itself over files in their format."""
        levels = self.bench.pyramid("features")
        if source == "batch":
            batch = [level[: self.settings.batch] for level in levels]
            return [[batch, torch.zeros(len(batch[0]))]]
        name, root = self.config.class_name, f"{self.bench.folder}/official/"
        Path(root).mkdir(exist_ok=True)
        for scale, level in enumerate(levels):
            np.save(f"{root}{name}_scale_{scale}_train.npy", level.numpy())
        np.save(f"{root}{name}_image_paths.npy", np.array([f"train/good/{i}.png" for i in range(len(levels[0]))]))
        dataset = self.utils.FeatureDataset(root=root, train=True)
        loader: Iterable[Any] = self.utils.make_dataloaders(dataset, dataset)[0]
        return loader

    def save_model(self) -> float:
        """Write their file (``torch.save`` of the whole module, as in their code) and return its megabytes."""
        path = self.bench.folder / MODEL_FILE
        torch.save(self.build("flow"), path)
        return path.stat().st_size / 1e6

    def load_model(self) -> nn.Module:
        """Unpickle the whole module, as in their code."""
        # Their pickle, which this program has just written.
        model: nn.Module = torch.load(self.bench.folder / MODEL_FILE, weights_only=False)
        return model


def _import_theirs(checkout: Path, bench: Bench) -> tuple[Any, Any, Any]:
    """Import their modules config, model and utils, after setting the fields of config, which their defaults read."""
    sys.path.insert(0, str(checkout.resolve()))
    if importlib.util.find_spec("efficientnet_pytorch") is None:
        # Only their feature extractor uses it, whose weights are not available here.
        stub = types.ModuleType("efficientnet_pytorch")
        stub.EfficientNet = object  # type: ignore[attr-defined]
        sys.modules["efficientnet_pytorch"] = stub
    settings, trunk = bench.settings, bench.read("trunk")
    config: Any = importlib.import_module("config")
    side = settings.size // 32
    config.device, config.pre_extracted, config.verbose = settings.device, True, False
    config.img_size, config.map_size = (settings.size, settings.size), (side, side)
    config.norm_mean, config.norm_std = list(trunk["mean"]), list(trunk["std"])
    config.n_feat, config.fc_internal, config.batch_size = trunk["channels"], settings.width, settings.batch
    return config, importlib.import_module("model"), importlib.import_module("utils")
