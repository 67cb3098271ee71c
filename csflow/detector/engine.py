"""Score images without torch: run a detector directory's graphs in ONNX Runtime, on images sized by Pillow.

One image is computed by all cores together. Several are computed in batches of a few, as many batches at once as there
are cores, so that images are sized while others are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from csflow.config import LineConfig
from csflow.data.images import read_image, to_pyramid_levels
from csflow.detector.directory import (
    BACKBONE,
    BACKBONE_GRAPH,
    MODEL_GRAPH,
    WHOLE_GRAPH,
    Description,
    check_graphs,
    compare_digest,
    digest_of,
    digests_beside_last_graph,
    not_a_detector,
)
from csflow.detector.prediction import Prediction, judged
from csflow.detector.trunk import Activations, Levels, Trunk, Trunks
from csflow.errors import ModelError
from csflow.system.cores import cores
from csflow.system.onnx_session import open_session

CHUNK = 4
"""Most images that are computed at once: more need memory and are not faster."""

_RESULTS = ["score", "map"]


class Engine:
    """A detector that scores images.

    Attributes:
        line: The line's configuration.
        calibration: Threshold and p-values, or the kind ``none``.
        lineage: Data, run, code and seed the detector was made from, as plain JSON values.
        threads: Number of cores used.
        trunk: The first part of the detector; engines with the same one can share a batch.
    """

    def __init__(
        self, directory: Path, about: Description, files: Mapping[str, str], threads: int, trunks: Trunks
    ) -> None:
        """Use :meth:`load`."""
        self.line: LineConfig = about.line
        self.calibration = about.calibration
        self.lineage: Mapping[str, Any] = dict(about.lineage)
        self.threads = threads
        if about.format < 4:  # one graph, so nothing can be shared
            self.trunk = Trunk(directory / WHOLE_GRAPH, _RESULTS, threads)
            self._model = None
        else:
            own = digest_of({name: files[name] for name in (BACKBONE_GRAPH, BACKBONE)})
            self.trunk = trunks.open(directory / BACKBONE_GRAPH, own, threads)
            self._model = open_session(directory / MODEL_GRAPH, threads=threads)

    @classmethod
    def load(cls, directory: Path, *, threads: int | None = None, trunks: Trunks | None = None) -> Engine:
        """Read a detector directory.

        Args:
            directory: The directory that :meth:`csflow.detector.detector.Detector.save` wrote.
            threads: Number of cores to use; by default all that this process may run on.
            trunks: The trunks of other engines, to share one; by default nothing is shared.

        Raises:
            ModelError: If a file is missing, damaged or does not belong to the others.
        """
        directory = Path(directory)
        about = Description.read(directory)
        if not about.graphs:
            raise ModelError(
                f"{not_a_detector(directory, WHOLE_GRAPH)} A csflow before 0.2 wrote it: train again to score without "
                "torch."
            )
        check_graphs(directory, about.graphs)
        files = digests_beside_last_graph(directory, about.graphs)
        engine = cls(directory, about, files, threads or cores(), trunks or Trunks())
        compare_digest(directory, engine._noted_digest(), digest_of(files))
        return engine

    def read(self, source: Path | bytes) -> Image.Image:
        """Decode an image as the detector's line does; see :func:`csflow.data.images.read_image`."""
        return read_image(source, self.line.features.bit_depth)

    def sized(self, image: Image.Image) -> Levels:
        """Resize an image for the trunk, as :func:`csflow.data.images.to_pyramid_levels` does."""
        return to_pyramid_levels(image, self.line.features)

    def judge(self, activations: Activations, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Judge N images by what the trunk computed of them.

        Args:
            activations: What :attr:`trunk` returned, N rows.
            sizes: Width and height of the images before they were sized.
        """
        if self._model is None:
            scores, maps = activations
        else:
            scores, maps = self._model.run(_RESULTS, {"features": activations[0]})
        return [
            judged(score, map2d, size, self.calibration) for score, map2d, size in zip(scores, maps, sizes, strict=True)
        ]

    def predict(self, images: Sequence[Image.Image]) -> list[Prediction]:
        """Score decoded RGB images (see :meth:`read`), of any sizes."""
        size = max(1, min(CHUNK, -(-len(images) // self.threads)))
        chunks = [images[start : start + size] for start in range(0, len(images), size)]
        if len(chunks) < 2 or self.threads == 1:
            parts = [self._score(chunk) for chunk in chunks]
        else:
            parts = list(self._workers.map(self._score, chunks))
        return [prediction for part in parts for prediction in part]

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="engine")

    def _score(self, images: Sequence[Image.Image]) -> list[Prediction]:
        activations = self.trunk.compute([self.sized(image) for image in images])
        return self.judge(activations, [image.size for image in images])

    def _noted_digest(self) -> str:
        session = self.trunk.session if self._model is None else self._model
        return str(session.get_modelmeta().custom_metadata_map.get("digest", ""))
