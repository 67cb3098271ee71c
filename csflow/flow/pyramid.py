"""Feature pyramids: lists of feature maps, finest first, that the trunk gives and the flow reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from csflow.errors import ModelError

Pyramid: TypeAlias = list[Tensor]
"""Feature maps or latents, finest first; level ``i`` is ``(B, C, H / 2**i, W / 2**i)``."""


def latent_count(pyramid: Sequence[Tensor]) -> int:
    """Return the number of values of one image, ``D``: over channels, pixels and scales."""
    return sum(level[0].numel() for level in pyramid)


def join_scales(pyramid: Sequence[Tensor]) -> Tensor:
    """Enlarge all levels bilinearly to the size of the first and concatenate them along the channels.

    Args:
        pyramid: Levels ``(B, C_i, h_i, w_i)``, finest first.

    Returns:
        One map ``(B, sum of C_i, h_0, w_0)``.
    """
    size = pyramid[0].shape[2:]
    enlarged = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in pyramid[1:]]
    return torch.cat([pyramid[0], *enlarged], dim=1)


def check_levels(pyramid: Sequence[Tensor], scales: int, channels: int) -> None:
    """Refuse a pyramid of other scales, channels or sizes than expected.

    Args:
        pyramid: Levels, finest first.
        scales: Expected number of levels.
        channels: Expected channels of every level.

    Raises:
        ModelError: If the number of levels or the channels differ, or a level does not have half the height and width
            of the one before.
    """
    shapes = [tuple(level.shape) for level in pyramid]
    if len(shapes) != scales:
        raise ModelError(
            f"Expected {scales} pyramid levels, got {len(shapes)}. "
            f"Extract the features with features.scales = {scales}."
        )
    if any(len(shape) != 4 for shape in shapes):
        raise ModelError(f"Expected levels of shape (batch, channels, height, width), got {shapes}.")
    if any(shape[1] != channels for shape in shapes):
        found = sorted({shape[1] for shape in shapes})
        raise ModelError(
            f"Expected {channels} channels, got {', '.join(map(str, found))}. "
            "Extract the features with the backbone and stage this flow was made for."
        )
    batch, _, height, width = shapes[0]
    step = 2 ** (scales - 1)
    halved = [(batch, channels, height >> i, width >> i) for i in range(scales)]
    if height % step or width % step or not height * width or shapes != halved:
        sizes = ", ".join(f"{shape[0]} x {shape[2]}x{shape[3]}" for shape in shapes)
        raise ModelError(
            f"Every level must have exactly half the height and width of the one before and the same batch, got "
            f"{sizes} (batch x height x width). With {scales} scales the finest must be a multiple of {step}: "
            "choose features.image_size accordingly."
        )
