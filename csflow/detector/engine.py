"""Score images without torch: run a detector directory's graph in ONNX Runtime, on images sized by Pillow.

All cores compute one image together. Several images are divided among the cores, a few each: images are sized while
others are computed, and no core waits for another after every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from csflow.config import LineConfig
from csflow.data.images import read_image, to_pyramid_levels
from csflow.detector.directory import (
    GRAPH,
    Description,
    check_graph,
    compare_digest,
    digest_beside_graph,
    not_a_detector,
)
from csflow.detector.prediction import Float32Array, Prediction, judged
from csflow.errors import ModelError
from csflow.system.cores import cores
from csflow.system.onnx_session import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CHUNK = 4
"""Most images that a core computes at once: more need memory and are not faster."""


class Engine:
    """A detector that scores images.

    Attributes:
        line: The line's configuration.
        calibration: Threshold and p-values, or the kind ``none``.
        lineage: Data, run, code and seed the detector was made from, as plain JSON values.
        threads: Number of cores used.
    """

    def __init__(self, directory: Path, about: Description, threads: int) -> None:
        """Use :meth:`load`."""
        self.line: LineConfig = about.line
        self.calibration = about.calibration
        self.lineage: Mapping[str, Any] = dict(about.lineage)
        self.threads = threads
        self._graph = directory / GRAPH
        self._together = open_session(self._graph, threads=threads)
        # A model that leaves out a scale has a graph without it.
        self._inputs = [(int(value.name.removeprefix("level_")), value.name) for value in self._together.get_inputs()]

    @classmethod
    def load(cls, directory: Path, *, threads: int | None = None) -> Engine:
        """Read a detector directory.

        Args:
            directory: The directory that :meth:`csflow.detector.detector.Detector.save` wrote.
            threads: Number of cores to use; by default all that this process may run on.

        Raises:
            ModelError: If a file is missing, damaged or does not belong to the others.
        """
        directory = Path(directory)
        about = Description.read(directory)
        if not (directory / GRAPH).is_file():
            raise ModelError(
                f"{not_a_detector(directory, GRAPH)} A csflow before 0.2 wrote it: train again to score without torch."
            )
        check_graph(directory)
        with ThreadPoolExecutor(1) as aside:
            digest = aside.submit(digest_beside_graph, directory)
            engine = cls(directory, about, threads or cores())
            engine._check_digest(digest.result())
        return engine

    def read(self, source: Path | bytes) -> Image.Image:
        """Decode an image as the detector's line does; see :func:`csflow.data.images.read_image`."""
        return read_image(source, self.line.features.bit_depth)

    def predict(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """Score decoded RGB images (see :meth:`read`), of any sizes."""
        if len(images) == 1 or self.threads == 1:
            parts = [self._score(self._together, images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        else:
            size = max(1, min(CHUNK, -(-len(images) // self.threads)))
            chunks = [images[start : start + size] for start in range(0, len(images), size)]
            parts = list(self._workers.map(lambda chunk: self._score(self._alone, chunk), chunks))
        found = [pair for scores, maps in parts for pair in zip(scores, maps, strict=True)]
        return [
            judged(score, map2d, image.size, self.calibration)
            for (score, map2d), image in zip(found, images, strict=True)
        ]

    @cached_property
    def _alone(self) -> InferenceSession:
        """The graph for as many callers as cores, of which each computes on one core."""
        return open_session(self._graph, threads=1)

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="engine")

    def _score(self, session: InferenceSession, images: Sequence[Image.Image]) -> tuple[Float32Array, Float32Array]:
        levels = list(zip(*(to_pyramid_levels(image, self.line.features) for image in images), strict=True))
        scores, maps = session.run(["score", "map"], {name: np.stack(levels[scale]) for scale, name in self._inputs})
        return scores, maps

    def _check_digest(self, digest: str) -> None:
        noted = self._together.get_modelmeta().custom_metadata_map.get("digest", "")
        compare_digest(self._graph.parent, noted, digest)
