"""A trained detector: backbone, flow and calibration, saved as one directory without any pickle.

======================== ==========================================================
``config.json``          ``kind``, the line's configuration, shape of the model
``model.safetensors``    weights and fixed permutations of the flow
``backbone.safetensors`` the trunk, so that serving never needs a model hub
``calibration.json``     threshold and what it promises; absent fields if none
``lineage.json``         data, run, code and seed it came from
======================== ==========================================================

The same bytes are trained, registered, published and served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from csflow.backbone import Backbone, backbone_from_safetensors, save_trunk
from csflow.cache import CachedFeatures
from csflow.calibration import Calibration
from csflow.config import LineConfig, parse_line_json
from csflow.errors import ConfigError, ModelError
from csflow.files import new_directory, write_json
from csflow.flow import CrossScaleFlow, Pyramid
from csflow.images import to_pyramid_inputs
from csflow.scoring import Box, anomaly_map, anomaly_score, boxes_in_image

FORMAT = 1

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What a detector says about one image.

    Attributes:
        score: Anomaly score, higher is more anomalous.
        p_value: Share of good parts that would score at least this high; ``None`` without calibration.
        decision: ``"good"`` or ``"defective"``; ``None`` without calibration.
        threshold: The score above which a part is defective; ``None`` without calibration.
        anomaly_map: ``(h, w)`` float32 at the resolution of the finest latent.
        image_size: ``(width, height)`` of the image in pixels.
        boxes: Regions above the region threshold in image pixels, most anomalous first.
    """

    score: float
    p_value: float | None
    decision: str | None
    threshold: float | None
    anomaly_map: Floats
    image_size: tuple[int, int]
    boxes: list[Box]


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
                self._prediction(score, map2d, image.size)
                for score, map2d, image in zip(scores, maps, chunk, strict=True)
            ]
        return predictions

    def score_features(self, features: CachedFeatures) -> tuple[Floats, Floats]:
        """Anomaly scores ``(N,)`` and anomaly maps ``(N, h, w)`` of stored features, both float32."""
        return score_stored(self.flow, features)

    def save(self, directory: Path) -> None:
        """Write the detector directory; either all of it appears or nothing."""
        with new_directory(directory) as target:
            write_json(
                target / "config.json",
                {
                    "format": FORMAT,
                    "kind": self.line.detector,
                    "channels": self.backbone.channels,
                    "line": self.line.model_dump(mode="json"),
                },
            )
            state = {name: tensor.contiguous().cpu() for name, tensor in self.flow.state_dict().items()}
            save_file(state, target / "model.safetensors")
            save_trunk(self.backbone, target / "backbone.safetensors")
            write_json(target / "calibration.json", self.calibration.to_json())
            write_json(target / "lineage.json", self.lineage)

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> Detector:
        """Read a detector directory.

        Raises:
            ModelError: If a file is missing, damaged or does not fit the configuration.
        """
        directory = Path(directory)
        config = _read_json(directory, "config.json")
        if config.get("format") != FORMAT:
            raise ModelError(
                f"{directory}/config.json has format {config.get('format')!r}, expected {FORMAT}. "
                "Use the csflow version that wrote it, or train again."
            )
        try:
            line = parse_line_json(json.dumps(config["line"]), source=f"{directory}/config.json")
        except (KeyError, ConfigError) as error:
            raise ModelError(f"{directory}/config.json does not describe a line: {error}") from error
        flow = load_flow(directory / "model.safetensors", line, channels=config["channels"])
        calibration = Calibration.from_json(_read_json(directory, "calibration.json"))
        backbone = backbone_from_safetensors(line.features, directory / "backbone.safetensors")
        lineage = _read_json(directory, "lineage.json")
        return cls(line, backbone.to(device), flow.to(device), calibration, lineage)

    def _extract(self, images: Sequence[Image.Image]) -> Pyramid:
        inputs = [to_pyramid_inputs(i, self.line.features, self.backbone.mean, self.backbone.std) for i in images]
        batch = [torch.stack(same_size).to(self.device) for same_size in zip(*inputs, strict=True)]
        pyramid: Pyramid = self.backbone(batch)
        return pyramid

    def _prediction(self, score: float, map2d: Floats, size: tuple[int, int]) -> Prediction:
        calibration, score = self.calibration, float(score)
        regions = calibration.region_threshold
        return Prediction(
            score=score,
            p_value=calibration.p_value(score),
            decision=calibration.decide(score),
            threshold=calibration.threshold,
            anomaly_map=map2d,
            image_size=size,
            boxes=[] if regions is None else boxes_in_image(map2d, regions, size),
        )


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
        raise ModelError(f"{path.parent} is not a detector directory: {path.name} is missing.") from error
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


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{directory} is not a detector directory: {name} is missing.") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download or publish the detector again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, expected an object.")
    return value
