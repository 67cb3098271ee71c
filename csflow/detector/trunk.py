"""Compute the first part of a detector, which lines with the same backbone share: images to features.

A trunk's weights, its copy of them in the layout of the machine and its threads exist once in a process, however many
lines are served, and images of several lines are computed in one batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from csflow.system.onnx_session import open_session

Levels: TypeAlias = Sequence[NDArray[np.uint8]]
"""An image sized for every scale, ``(s, s, 3)``, finest first (:func:`csflow.data.images.to_pyramid_levels`)."""

Activations: TypeAlias = list[NDArray[np.float32]]
"""What a trunk returns for N images: arrays ``(N, …)``."""


class Trunk:
    """A graph that reads sized images.

    Args:
        graph: The file.
        outputs: Names of the outputs.
        threads: Cores that compute one call together.

    Raises:
        ModelError: If the graph cannot be opened.
    """

    def __init__(self, graph: Path, outputs: Sequence[str], threads: int) -> None:
        self.session = open_session(graph, threads=threads)
        self._outputs = list(outputs)
        # A model that leaves out a scale has a graph without it.
        names = [value.name for value in self.session.get_inputs()]
        self._inputs = [(int(name.removeprefix("level_")), name) for name in names]

    def compute(self, images: Sequence[Levels]) -> Activations:
        """Compute a batch of one image or more."""
        feeds = {name: np.stack([levels[scale] for levels in images]) for scale, name in self._inputs}
        found: Activations = self.session.run(self._outputs, feeds)
        return found


class Trunks:
    """The trunks that are in use, each opened once; one that no detector uses any more is closed."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, int], Trunk] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, graph: Path, digest: str, threads: int) -> Trunk:
        """Return the trunk with a digest; the first time, open it from its graph.

        Raises:
            ModelError: If it cannot be opened.
        """
        with self._lock:  # several detectors are loaded at once
            trunk = self._known.get((digest, threads))
            if trunk is None:
                trunk = Trunk(graph, ["features"], threads)
                self._known[digest, threads] = trunk
            return trunk
