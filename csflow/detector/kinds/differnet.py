"""DifferNet: a flow on feature vectors averaged over all positions, over several rotations of the image.

Reference:
    Rudolph et al., "Same same but DifferNet", WACV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from csflow.config import FlowConfig, LineConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.model import Model, pooled
from csflow.detector.model_file import flow_state
from csflow.features.entries import Shape
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid, join_scales
from csflow.flow.training import fit_flow


class PooledFlowModel(Model):
    """DifferNet: a flow on feature vectors averaged over all positions, over several rotations of the image.

    The score is the mean over the rotations of the mean of ``z ** 2 / 2``. The flow has 1 x 1 kernels, so it can also
    judge every position by itself: that is the map, of the image without rotation. It is only a hint, because the flow
    was fitted to averages.

    Args:
        flow: A flow on one scale of 1 x 1 with the channels of all levels of one rotation.
        rotations: Number of rotations in a pyramid.

    Reference:
        Rudolph et al., "Same Same But DifferNet", WACV 2021. There the networks in the couplings are deeper, and maps
        are gradients.
    """

    def __init__(self, flow: CrossScaleFlow, rotations: int) -> None:
        super().__init__()
        self.flow = flow
        self.rotations = rotations

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        scores = [
            _half_mean_square(self.flow([vectors])[0][0]) for vectors in _pooled_rotations(pyramid, self.rotations)
        ]
        once = pyramid[: len(pyramid) // self.rotations]
        latents, _ = self.flow([join_scales(once)])
        return torch.stack(scores).mean(dim=0).flatten(), latents[0].square().sum(dim=1)


class PooledFeatures:
    """Stored features as vectors: every rotation of every image counts as an image of its own."""

    def __init__(self, features: Features, rotations: int) -> None:
        """Wrap ``features``, whose pyramids hold ``rotations`` rotations."""
        self.features = features
        self.rotations = rotations

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.features) * self.rotations

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return one level ``(len(indices), C, 1, 1)``; vector ``i`` is rotation ``i % rotations`` of its image."""
        pyramid = self.features.batch([index // self.rotations for index in indices])
        vectors = torch.stack(_pooled_rotations(pyramid, self.rotations), dim=1)
        return [vectors[torch.arange(len(indices)), torch.tensor([index % self.rotations for index in indices])]]


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
        held_out=fitting.held_out and PooledFeatures(fitting.held_out, line.features.rotations),
    )
    return PooledFlowModel(flow, line.features.rotations)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    shape, channels = _pooled_flow(line, shapes)
    model = PooledFlowModel(CrossScaleFlow(shape, channels=channels, scales=1), line.features.rotations)
    model.load_state_dict(flow_state(state))
    return model


def _pooled_rotations(pyramid: Pyramid, rotations: int) -> list[Tensor]:
    """Return the pooled vectors of every rotation as maps of one position ``(B, C, 1, 1)``."""
    count = len(pyramid) // rotations
    return [pooled(pyramid[start * count : (start + 1) * count])[:, :, None, None] for start in range(rotations)]


def _half_mean_square(latent: Tensor) -> Tensor:
    return latent.square().flatten(1).mean(dim=1) / 2


def _pooled_flow(line: LineConfig, shapes: tuple[Shape, ...]) -> tuple[FlowConfig, int]:
    """Return shape and channels of DifferNet's flow: 1 x 1 kernels on the joined levels of one rotation."""
    once = shapes[: len(shapes) // line.features.rotations]
    shape = line.flow.model_copy(update={"kernel_sizes": (1,) * line.flow.blocks, "scales": None, "fusion": "cross"})
    return shape, sum(channels for channels, _, _ in once)
