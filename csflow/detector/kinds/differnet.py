"""DifferNet: a flow on feature vectors averaged over all positions, over several rotations of the image.

Reference:
    Rudolph et al., "Same same but DifferNet", WACV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csflow.config import FlowConfig, LineConfig
from csflow.detector.fitting import Fitting, ShapedFeatures, flow_state
from csflow.detector.model import Model, turns_pooled
from csflow.features.entries import Shape
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales
from csflow.flow.training import fit_flow


class PooledFlowModel(Model):
    """DifferNet: a flow on feature vectors averaged over all places, over several turns of the image.

    The score is the mean over the turns of the mean of ``z ** 2 / 2``. The flow has kernels of one place, so it also
    judges every place by itself: that is the map, of the image as it stands. It only hints, for the flow was fitted to
    averages.

    Args:
        flow: On one scale of 1 x 1, its channels those of all levels of one turn.
        rotations: Turns in a pyramid.

    Reference:
        Rudolph et al., "Same Same But DifferNet", WACV 2021. There the networks in the couplings are deeper, and maps
        are gradients.
    """

    def __init__(self, flow: CrossScaleFlow, rotations: int) -> None:
        super().__init__()
        self.flow = flow
        self.rotations = rotations

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`Model.forward`."""
        scores = [_half_mean_square(self.flow([vectors])[0][0]) for vectors in turns_pooled(pyramid, self.rotations)]
        once = pyramid[: len(pyramid) // self.rotations]
        latents, _ = self.flow([join_scales(once)])
        return torch.stack(scores).mean(dim=0).flatten(), latents[0].square().sum(dim=1)


class PooledFeatures:
    """A feature store's images as vectors: every turn of every image counts as an image of its own."""

    def __init__(self, features: Features, rotations: int) -> None:
        """Look at ``features``, whose pyramids hold ``rotations`` turns."""
        self.features = features
        self.rotations = rotations

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self.features) * self.rotations

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """One level ``(len(indices), C, 1, 1)``; vector ``i`` is turn ``i % rotations`` of its image."""
        pyramid = self.features.batch([index // self.rotations for index in indices])
        turns = torch.stack(turns_pooled(pyramid, self.rotations), dim=1)
        return [turns[torch.arange(len(indices)), torch.tensor([index % self.rotations for index in indices])]]


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    shape, channels = _pooled_flow(line, features.shapes)
    flow = fit_flow(
        PooledFeatures(features, line.features.rotations),
        shape,
        line.training,
        channels=channels,
        scales=1,
        directory=fitting.directory,
        on_epoch=fitting.on_epoch,
        group=fitting.group,
    )
    return PooledFlowModel(flow, line.features.rotations)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    shape, channels = _pooled_flow(line, shapes)
    model = PooledFlowModel(CrossScaleFlow(shape, channels=channels, scales=1), line.features.rotations)
    model.load_state_dict(flow_state(state))
    return model


def _half_mean_square(latent: Tensor) -> Tensor:
    return latent.square().flatten(1).mean(dim=1) / 2


def _pooled_flow(line: LineConfig, shapes: tuple[Shape, ...]) -> tuple[FlowConfig, int]:
    """Shape and channels of DifferNet's flow: kernels of one place on the joined levels of one turn."""
    once = shapes[: len(shapes) // line.features.rotations]
    shape = line.flow.model_copy(update={"kernel_sizes": (1,) * line.flow.blocks, "scales": None, "fusion": "cross"})
    return shape, sum(channels for channels, _, _ in once)
