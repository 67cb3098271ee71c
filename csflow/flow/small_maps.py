r"""Convolve maps smaller than the kernel without bfloat16, in which some CPUs compute them wrongly.

On CPUs with AVX512-BF16, torch 2.15 computes the weight gradient of a bfloat16 convolution with 5 x 5 taps on a map of
one pixel from memory that nothing wrote to: it differs from call to call and is not always finite. Most taps of such a
kernel only ever meet padding. Along one axis, an output :math:`i` reads tap :math:`t` at the pixel
:math:`s i - p + t` (stride ``s``, padding ``p``), so that of ``k`` taps at most :math:`2 \cdot size - 1` touch a map.
Without the others, and in float32, the result is exact, and cheaper: on one pixel it is a matrix product.

Reference:
    docs/decisions/021-bfloat16-on-small-maps.md; :mod:`csflow.flow.bfloat16_check` looks for such shapes.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Taps(NamedTuple):
    """The taps of a kernel that touch a map, along one axis.

    Attributes:
        first: Index of the first one.
        end: Index after the last one.
        before: Pixels of padding in front of the map that they need.
        after: Pixels of padding behind it.
    """

    first: int
    end: int
    before: int
    after: int


def convolve_by_library(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply a convolution by the library, but on maps smaller than the kernel without half precision on CPUs.

    Args:
        x: ``(B, C, h, w)``.
        layer: Square kernel of odd side, with ``padding = kernel // 2``.

    Returns:
        The result; in float32 where half precision was avoided, else in the precision that autocast chooses.
    """
    return _convolve_touching(x, layer) if _is_at_risk(x, layer) else cast(Tensor, layer(x))


def touching_taps(size: int, kernel: int, stride: int) -> Taps:
    """Return the taps that touch a map of ``size`` pixels, along one axis.

    Args:
        size: Pixels of the map.
        kernel: Odd number of taps; the map is padded by half as many on both sides.
        stride: Pixels between two outputs.
    """
    padding = kernel // 2
    last = (size - 1) // stride * stride  # where the last output is centred
    first, end = max(0, padding - last), min(kernel, padding + size)
    before = padding - first
    return Taps(first, end, before, after=max(0, last + end - first - size - before))


def _is_at_risk(x: Tensor, layer: nn.Conv2d) -> bool:
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    return min(x.shape[2:]) < layer.kernel_size[0]


def _convolve_touching(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply, in float32, only the taps that touch the map."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    height, width = (touching_taps(int(size), kernel, stride) for size in x.shape[2:])
    weight = layer.weight[:, :, height.first : height.end, width.first : width.end].float()
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast("cpu", enabled=False):
        padded = F.pad(x.float(), (width.before, width.after, height.before, height.after))
        if padded.shape[2:] == weight.shape[2:]:  # one output: a matrix product
            return F.linear(padded.flatten(1), weight.flatten(1), bias)[:, :, None, None]
        return F.conv2d(padded, weight, bias, stride)
