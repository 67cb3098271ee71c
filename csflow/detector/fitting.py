"""Fit the kind of detector that a line names, through the module that implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

from csflow.config import KINDS, LineConfig
from csflow.detector.model import Model
from csflow.errors import DataError
from csflow.features.entries import Shape
from csflow.flow.device import Features
from csflow.flow.distributed import ALONE, ProcessGroup
from csflow.flow.training import EpochResult


class ShapedFeatures(Features, Protocol):
    """Features that know their shapes.

    Attributes:
        shapes: ``(C, h, w)`` of every feature map.
    """

    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Fitting:
    """Checkpoint, progress and processes of a fit.

    Attributes:
        directory: Holds the checkpoint of kinds that are trained in epochs.
        on_epoch: Called after each of their epochs.
        group: The processes that train together; kinds without epochs are fitted by each of them.
        held_out: Features of good images that are not fitted, on which kinds with epochs measure how they get on.
    """

    directory: Path
    on_epoch: Callable[[EpochResult], None] = lambda result: None
    group: ProcessGroup = ALONE
    held_out: ShapedFeatures | None = None


class Implementation(Protocol):
    """Functions that the module of a kind of detector offers."""

    def fit(self, line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
        """Fit a model to the features of good images.

        Raises:
            DataError: If there are too few images.
            ModelError: If training diverges.
        """

    def restore(self, line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
        """Make a model from the tensors of its file.

        Args:
            line: The line's configuration.
            shapes: ``(C, h, w)`` of every feature map.
            state: The tensors by name, as :func:`csflow.detector.model_file.save_model` wrote them.
        """


def implementation_of(kind: str) -> Implementation:
    """Import the module that implements a kind of detector."""
    return cast(Implementation, import_module(KINDS[kind].implementation))


def fit_model(
    line: LineConfig,
    features: ShapedFeatures,
    *,
    directory: Path,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    group: ProcessGroup = ALONE,
    held_out: ShapedFeatures | None = None,
) -> Model:
    """Fit the kind of detector that a line names to good images.

    Args:
        line: The line's configuration.
        features: Features of the good images to fit.
        directory: Holds the checkpoint of kinds that are trained in epochs.
        on_epoch: Called after each of their epochs.
        group: The processes that train together.
        held_out: Features of good images that are not fitted; they change nothing.

    Raises:
        DataError: If there are too few images.
        ModelError: If training diverges; see :func:`csflow.flow.training.fit_flow`.
    """
    if not len(features):
        raise DataError("There are no images to fit. Add good images, or hold out fewer (roles).")
    fitting = Fitting(directory, on_epoch, group, held_out)
    return implementation_of(line.detector).fit(line, features, fitting).eval()
