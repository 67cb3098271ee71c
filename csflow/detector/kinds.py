"""The kinds of detector a line can name: how each is fitted, and read from its file again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csflow.config import FlowConfig, LineConfig
from csflow.detector.baselines import Mahalanobis, NearestNeighbour, Padim, Patchcore
from csflow.detector.directory import not_a_detector
from csflow.detector.model import FlowModel, Model, PooledFeatures, PooledFlowModel
from csflow.errors import DataError, ModelError
from csflow.features.store import Shape
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.device import Features
from csflow.flow.distributed import ALONE, Group
from csflow.flow.training import EpochResult, fit

Shapes = tuple[Shape, ...]


class ShapedFeatures(Features, Protocol):
    """Features that say their shapes.

    Attributes:
        shapes: ``(C, h, w)`` of every feature map.
    """

    shapes: Shapes


TRAINED = ("csflow", "differnet")
"""Kinds that take epochs; the others look at every image once."""


def fit_model(
    line: LineConfig,
    features: ShapedFeatures,
    *,
    directory: Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    group: Group = ALONE,
) -> Model:
    """Fit the kind of detector a line names to good images.

    Args:
        line: The line's configuration.
        features: Of the good images to fit.
        directory: Holds the checkpoint of kinds that take epochs.
        on_epoch: Called after each of their epochs.
        group: The processes that train together; kinds without epochs are fitted by each of them.

    Raises:
        DataError: If there are too few images.
        ModelError: If training diverges; see :func:`csflow.flow.training.fit`.
    """
    if not len(features):
        raise DataError("There are no images to fit. Add good images, or hold out fewer (roles).")
    pixels, seed = line.features.image_size, line.training.seed
    match line.detector:
        case "nearest-neighbour":
            return NearestNeighbour.fit(features)
        case "mahalanobis":
            return Mahalanobis.fit(features)
        case "padim":
            return Padim.fit(features, line.padim, pixels=pixels, seed=seed)
        case "patchcore":
            return Patchcore.fit(features, line.patchcore, pixels=pixels, seed=seed)
        case "differnet":
            shape, channels = _pooled_flow(line, features.shapes)
            vectors = PooledFeatures(features, line.features.rotations)
            flow = fit(
                vectors,
                shape,
                line.training,
                channels=channels,
                scales=1,
                directory=directory,
                on_epoch=on_epoch,
                group=group,
            )
            return PooledFlowModel(flow, line.features.rotations).eval()
        case "csflow":
            channels, scales = _levels(features.shapes)
            flow = fit(
                features,
                line.flow,
                line.training,
                channels=channels,
                scales=scales,
                directory=directory,
                on_epoch=on_epoch,
                group=group,
            )
            return FlowModel(flow, line.scoring).eval()


def load_model(path: Path, line: LineConfig, shapes: Shapes) -> Model:
    """Read the model of a line.

    Args:
        path: As :func:`csflow.detector.model.save_model` wrote it, by this or an earlier version.
        line: The line's configuration.
        shapes: ``(C, h, w)`` of every feature map.

    Raises:
        ModelError: If the file is missing, damaged or of another configuration.
    """
    try:
        model = _restored(line, shapes, load_file(path))
    except FileNotFoundError as error:
        raise not_a_detector(path.parent, path.name) from error
    except (SafetensorError, RuntimeError, OSError, TypeError, IndexError, ValueError) as error:
        raise ModelError(f"{path} does not fit the configuration: {error}. Train or download it again.") from error
    return model.eval()


def _restored(line: LineConfig, shapes: Shapes, state: dict[str, Tensor]) -> Model:
    if line.detector in TRAINED:
        if line.detector == "csflow":
            channels, scales = _levels(shapes)
            model: Model = FlowModel(CrossScaleFlow(line.flow, channels=channels, scales=scales), line.scoring)
        else:
            shape, channels = _pooled_flow(line, shapes)
            model = PooledFlowModel(CrossScaleFlow(shape, channels=channels, scales=1), line.features.rotations)
        # Before format 3 the file named the flow's tensors alone.
        named = {name if name.startswith("flow.") else f"flow.{name}": tensor for name, tensor in state.items()}
        model.load_state_dict(named)
        return model
    kinds = {"nearest-neighbour": NearestNeighbour, "mahalanobis": Mahalanobis, "padim": Padim, "patchcore": Patchcore}
    restored: Model = kinds[line.detector](**state)
    with torch.inference_mode():  # a file of other features fails here and not on the first part
        restored([torch.zeros(1, *shape) for shape in shapes])
    return restored


def _levels(shapes: Shapes) -> tuple[int, int]:
    """Channels and number of the levels a cross-scale flow reads."""
    return shapes[0][0], len(shapes)


def _pooled_flow(line: LineConfig, shapes: Shapes) -> tuple[FlowConfig, int]:
    """Shape and channels of DifferNet's flow: kernels of one place on the joined levels of one turn."""
    once = shapes[: len(shapes) // line.features.rotations]
    shape = line.flow.model_copy(update={"kernel_sizes": (1,) * line.flow.blocks, "scales": None, "fusion": "cross"})
    return shape, sum(channels for channels, _, _ in once)
