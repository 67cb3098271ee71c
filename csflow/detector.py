"""A trained detector in torch: backbone, flow and calibration, saved as one directory without any pickle.

:mod:`csflow.directory` says what lies in the directory. The same bytes are trained, registered, published and served;
what serves them is :mod:`csflow.engine`, which needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from csflow.backbone import Backbone, backbone_from_safetensors, save_trunk
from csflow.cache import CachedFeatures
from csflow.calibration import Calibration
from csflow.config import LineConfig
from csflow.directory import BACKBONE, MODEL, Description, not_a_detector
from csflow.errors import ModelError
from csflow.files import new_directory
from csflow.flow import CrossScaleFlow, Pyramid
from csflow.images import to_pyramid_inputs
from csflow.prediction import Floats, judged
from csflow.prediction import Prediction as Prediction
from csflow.scoring import anomaly_map, anomaly_score


class Detector:
    """Backbone, flow and calibration of one line.

    Args:
        line: The line's configuration.
        backbone: Frozen trunk that makes the feature pyramid.
        flow: The trained flow.
        calibration: Threshold and p-values, or the kind ``none``.
        lineage: Where it came from, as plain JSON values.
    """

    def __init__(
        self,
        line: LineConfig,
        backbone: Backbone,
        flow: CrossScaleFlow,
        calibration: Calibration,
        lineage: Mapping[str, Any],
    ) -> None:
        self.line = line
        self.backbone = backbone
        self.flow = flow.eval()
        self.calibration = calibration
        self.lineage = dict(lineage)

    @cached_property
    def device(self) -> torch.device:
        """Where the flow lies."""
        return next(self.flow.parameters()).device

    def predict(self, images: Sequence[Image.Image], *, batch_size: int = 8) -> list[Prediction]:
        """Score decoded RGB images (see :func:`csflow.images.read_image`)."""
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            scores, maps = _score(self.flow, self._extract(chunk))
            predictions += [
                judged(score, map2d, image.size, self.calibration)
                for score, map2d, image in zip(scores, maps, chunk, strict=True)
            ]
        return predictions

    def score_features(self, features: CachedFeatures) -> tuple[Floats, Floats]:
        """Anomaly scores ``(N,)`` and anomaly maps ``(N, h, w)`` of stored features, both float32."""
        return score_stored(self.flow, features)

    def save(self, directory: Path, *, examples: Sequence[Image.Image] = ()) -> None:
        """Write the detector directory; either all of it appears or nothing.

        Args:
            directory: Where to; must not exist.
            examples: Images of the line on which the written graph must agree; drawn ones without.

        Raises:
            ModelError: If the flow cannot be stored, or the graph says something else than the detector.
        """
        from csflow.engine import Engine
        from csflow.export import check_agreement, drawn_examples, write_graph

        images = list(examples) or drawn_examples()

        with new_directory(directory) as target:
            Description(self.line, self.backbone.channels, self.calibration, self.lineage).write(target)
            save_flow(self.flow, target / MODEL)
            save_trunk(self.backbone, target / BACKBONE)
            write_graph(self, target)
            check_agreement(self.predict(images), Engine.load(target).predict(images))

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> Detector:
        """Read a detector directory of any known format.

        Raises:
            ModelError: If a file is missing, damaged or does not fit the configuration.
        """
        directory = Path(directory)
        about = Description.read(directory)
        flow = load_flow(directory / MODEL, about.line, channels=about.channels)
        backbone = backbone_from_safetensors(about.line.features, directory / BACKBONE)
        return cls(about.line, backbone.to(device), flow.to(device), about.calibration, about.lineage)

    def _extract(self, images: Sequence[Image.Image]) -> Pyramid:
        inputs = [to_pyramid_inputs(i, self.line.features, self.backbone.mean, self.backbone.std) for i in images]
        batch = [torch.from_numpy(np.stack(level)).to(self.device) for level in zip(*inputs, strict=True)]
        pyramid: Pyramid = self.backbone(batch)
        return pyramid


def round_to_stored(flow: CrossScaleFlow) -> None:
    """Give a flow, in place, the values its file will hold: to be done before anything is calibrated by it.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    flow.load_state_dict(_stored(flow))


def save_flow(flow: CrossScaleFlow, path: Path) -> None:
    """Write the weights of a flow in half precision; :func:`load_flow` reads what :func:`round_to_stored` leaves.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    save_file(_stored(flow), path)


def _stored(flow: CrossScaleFlow) -> dict[str, Tensor]:
    """The state as it is stored: weights in half precision, integers narrow; the standardisation in full."""
    weights = dict(flow.named_parameters())
    state = {name: tensor.detach().cpu() for name, tensor in flow.state_dict().items()}
    stored = {name: _narrow(tensor, weight=name in weights).contiguous() for name, tensor in state.items()}
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of the flow, {broken[0]} the first, are not finite in half precision. "
            "Training diverged: lower training.learning_rate."
        )
    return stored


def _narrow(tensor: Tensor, *, weight: bool) -> Tensor:
    if weight:
        return tensor.half()
    if not tensor.is_floating_point() and int(tensor.max()) <= torch.iinfo(torch.int16).max:
        return tensor.to(torch.int16)
    return tensor


def score_stored(flow: CrossScaleFlow, features: CachedFeatures, *, batch_size: int = 32) -> tuple[Floats, Floats]:
    """Score stored features with a flow.

    Returns:
        Anomaly scores ``(N,)`` and anomaly maps ``(N, h, w)``, both float32; empty for no images.
    """
    parts = [_score(flow, features.batch(rows)) for rows in _chunks(len(features), batch_size)]
    if not parts:
        return np.zeros(0, np.float32), np.zeros((0, 0, 0), np.float32)
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([maps for _, maps in parts])


def load_flow(path: Path, line: LineConfig, *, channels: int) -> CrossScaleFlow:
    """Read the weights of a line's flow.

    Raises:
        ModelError: If the file is missing, damaged or of another configuration.
    """
    flow = CrossScaleFlow(line.flow, channels=channels, scales=line.features.scales)
    try:
        flow.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise not_a_detector(path.parent, path.name) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError(f"{path} does not fit the configuration: {error}. Train or download it again.") from error
    return flow.eval()


@torch.inference_mode()
def _score(flow: CrossScaleFlow, pyramid: Pyramid) -> tuple[Floats, Floats]:
    device = flow.feature_mean.device
    latents, _ = flow([level.to(device, torch.float32) for level in pyramid])
    return anomaly_score(latents).cpu().numpy(), anomaly_map(latents)[:, 0].cpu().numpy()


def _chunks(total: int, size: int) -> Iterator[list[int]]:
    for start in range(0, total, size):
        yield list(range(start, min(start + size, total)))
