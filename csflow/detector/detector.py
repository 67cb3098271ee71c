"""Judge images with a trained detector in torch; save it as one directory without any pickle, and load it.

:mod:`csflow.detector.directory` describes the files of the directory. The same bytes are trained, registered, published
and served; :mod:`csflow.detector.engine` serves them and needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from csflow.config import LineConfig
from csflow.data.images import read_image, to_pyramid_inputs
from csflow.detector.calibration import Calibration
from csflow.detector.directory import BACKBONE, MODEL, Description
from csflow.detector.engine import Engine
from csflow.detector.graph_file import check_agreement, check_directory, drawn_examples, write_graphs
from csflow.detector.model import Model, score_pyramid, score_stored
from csflow.detector.model_file import load_model, save_model
from csflow.detector.prediction import Float32Array, judged
from csflow.detector.prediction import Prediction as Prediction
from csflow.features.backbone import Backbone, backbone_from_safetensors, save_trunk
from csflow.features.cache_manifest import CachedFeatures
from csflow.flow.pyramid import Pyramid
from csflow.system.files import new_directory


class Detector:
    """Backbone, model and calibration of one line.

    Args:
        line: The line's configuration.
        backbone: Frozen trunk that computes the feature pyramid.
        model: The fitted model.
        calibration: Threshold and p-values, or the kind ``none``.
        lineage: Data, run, code and seed it was made from, as plain JSON values.
    """

    def __init__(
        self,
        line: LineConfig,
        backbone: Backbone,
        model: Model,
        calibration: Calibration,
        lineage: Mapping[str, Any],
    ) -> None:
        self.line = line
        self.backbone = backbone
        self.model = model.eval()
        self.calibration = calibration
        self.lineage = dict(lineage)

    @cached_property
    def device(self) -> torch.device:
        """Return the device of the backbone."""
        return next(self.backbone.parameters()).device

    def read(self, source: Path | bytes) -> Image.Image:
        """Decode an image as the detector's line does; see :func:`csflow.data.images.read_image`."""
        return read_image(source, self.line.features.bit_depth)

    def predict(self, images: Sequence[Image.Image], *, batch_size: int = 8) -> list[Prediction]:
        """Score decoded RGB images (see :meth:`read`) of any sizes.

        Args:
            images: The images.
            batch_size: Number of images computed at once.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            scores, maps = score_pyramid(self.model, self._extract(chunk))
            predictions += [
                judged(score, map2d, image.size, self.calibration)
                for score, map2d, image in zip(scores, maps, chunk, strict=True)
            ]
        return predictions

    def score_features(self, features: CachedFeatures) -> tuple[Float32Array, Float32Array]:
        """Score stored features; return scores ``(N,)`` and maps ``(N, h, w)``, both float32."""
        return score_stored(self.model, features)

    def save(self, directory: Path, *, examples: Sequence[Image.Image] = ()) -> None:
        """Write the detector directory; either all of it appears or nothing.

        Args:
            directory: The directory to write; must not exist.
            examples: Images of the line on which the graphs must agree with torch; drawn ones if there are none.

        Raises:
            ModelError: If the model cannot be stored, or the graphs disagree with torch.
        """
        images = list(examples) or drawn_examples()
        about = Description(self.line, self.backbone.channels, self.calibration, self.lineage)
        with new_directory(directory) as target:
            about.write(target)
            save_model(self.model, target / MODEL)
            save_trunk(self.backbone, target / BACKBONE)
            write_graphs(target, about, self.backbone, self.model)
            check_agreement(self.predict(images), Engine.load(target).predict(images), self.calibration)

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> Detector:
        """Read a detector directory of any known format.

        Raises:
            ModelError: If a file is missing, damaged or does not fit the configuration.
        """
        directory = Path(directory)
        about = Description.read(directory)
        check_directory(directory)
        backbone = backbone_from_safetensors(about.line.features, directory / BACKBONE)
        model = load_model(directory / MODEL, about.line, backbone.shapes(about.line.features))
        return cls(about.line, backbone.to(device), model.to(device), about.calibration, about.lineage)

    def _extract(self, images: Sequence[Image.Image]) -> Pyramid:
        inputs = [to_pyramid_inputs(i, self.line.features, self.backbone.mean, self.backbone.std) for i in images]
        batch = [torch.from_numpy(np.stack(level)).to(self.device) for level in zip(*inputs, strict=True)]
        pyramid: Pyramid = self.backbone(batch)
        return pyramid
