"""Look for convolutions of the flow that this machine computes wrongly in bfloat16.

Every shape is computed several times, forward and backward. In between, tensors of NaN and infinity are allocated and
freed, so that a kernel that reads memory nothing wrote to shows itself. A shape is reported if a result is not finite,
differs from call to call, or is not that of float32 up to the precision of bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor, nn

from csflow.flow.convolution import convolve, convolve_enlarged
from csflow.flow.small_maps import convolve_by_library

Convolution: TypeAlias = Callable[[Tensor, nn.Conv2d], Tensor]

TOLERANCE = 0.02
"""Largest relative difference from float32 (Euclidean norm); rounding to bfloat16 and back makes about 0.004."""

CALLS = 3
"""Times that every shape is computed."""

_POISON = tuple(4**power for power in range(3, 11))
"""Values of the tensors of NaN and infinity: 256 bytes to 4 MiB."""

_RESULTS = ("output", "gradient of the input", "gradient of the weights", "gradient of the bias")


@dataclass(frozen=True)
class Shape:
    """A convolution of the flow.

    Attributes:
        kernel: Side of the kernel.
        height: Rows of the map.
        width: Columns of the map.
        channels: Channels of the map.
        outputs: Channels of the result.
        batch: Number of images.
        stride: Pixels of the map between two outputs; 2 leads to the coarser scale.
        enlarged: True if the map is enlarged twofold before, as on the way to the finer scale.
        channels_last: True if map and weights are channels-last in memory, as in training.
    """

    kernel: int
    height: int
    width: int
    channels: int
    outputs: int
    batch: int = 16
    stride: int = 1
    enlarged: bool = False
    channels_last: bool = True

    def __str__(self) -> str:
        """Describe the convolution in a few words."""
        way = ", enlarged" if self.enlarged else f", stride {self.stride}" if self.stride > 1 else ""
        layout = "" if self.channels_last else ", channels first"
        return (
            f"{self.kernel} x {self.kernel} taps on {self.batch} maps of {self.height} x {self.width}, "
            f"{self.channels} to {self.outputs} channels{way}{layout}"
        )


@dataclass(frozen=True)
class Fault:
    """A convolution that is computed wrongly, and what is wrong with it."""

    shape: Shape
    what: str


def shapes_of_flows() -> Iterator[Shape]:
    """Yield the shapes that flows have on small maps, with full and with partial blocks of channels."""
    usual, others = (256, 160), ((64, 96), (100, 130), (192, 304), (512, 64))
    sides = [(side, side) for side in range(1, 9)] + [(1, 4), (4, 1), (2, 8), (8, 3)]
    for (height, width), kernel in product(sides, (1, 3, 5)):
        shape = Shape(kernel, height, width, *usual, batch=16 if height * width <= 9 else 2)
        yield from (shape, replace(shape, enlarged=True), replace(shape, channels_last=False))
        strided = [replace(shape, stride=2)] if kernel > 1 else []
        yield from strided
        if shape.batch > 1:
            yield from (replace(each, batch=1) for each in (shape, *strided))
        if min(height, width) <= 5:
            for channels, outputs in others:
                yield from (replace(each, channels=channels, outputs=outputs) for each in (shape, *strided))


def most_telling_shapes() -> Iterator[Shape]:
    """Yield few shapes, those first that were seen to go wrong somewhere."""
    for side, kernel in ((1, 5), (2, 5), (1, 3), (3, 5), (2, 3), (4, 5), (4, 3)):
        shape = Shape(kernel, side, side, 256, 160)
        yield from (shape, replace(shape, stride=2))
        if side < 3:
            yield replace(shape, enlarged=True)


def find_faults(
    shapes: Iterable[Shape], *, seconds: float = float("inf"), convolution: Convolution | None = None
) -> tuple[list[Fault], int]:
    """Compute convolutions in bfloat16 on the CPU, and compare them with each other and with float32.

    Args:
        shapes: What to compute.
        seconds: Time after which no further shape is begun.
        convolution: What computes it; by default what the flow does for the shape.

    Returns:
        The faults, and the number of shapes computed.
    """
    began, done, faults = time.monotonic(), 0, []
    for shape in shapes:
        if time.monotonic() - began >= seconds:
            break
        what = _fault_of(shape, convolution or _of_the_flow(shape))
        faults += [Fault(shape, what)] if what else []
        done += 1
    return faults, done


def _of_the_flow(shape: Shape) -> Convolution:
    """Return what the flow computes a convolution with."""
    if shape.enlarged:
        return convolve_enlarged
    return convolve if shape.stride == 1 else convolve_by_library


def _fault_of(shape: Shape, convolution: Convolution) -> str:
    """Say what is wrong with a shape; an empty text if nothing is."""
    x, layer, grad = _tensors(shape)
    expected = _computed(x, layer, grad, convolution, torch.float32)
    first = None
    for _ in range(CALLS):
        _poison_freed_memory([*expected, x])
        found = _computed(x, layer, grad, convolution, torch.bfloat16)
        for name, value, wanted in zip(_RESULTS, found, expected, strict=True):
            if not value.isfinite().all():
                return f"the {name} is not finite"
            if (distance := _distance(value, wanted)) > TOLERANCE:
                return f"the {name} differs from float32 by {distance:.2g} (relative, at most {TOLERANCE} is allowed)"
        first = first or found
        for name, value, before in zip(_RESULTS, found, first, strict=True):
            if not torch.equal(value, before):
                return f"the {name} differs from call to call"
    return ""


def _tensors(shape: Shape) -> tuple[Tensor, nn.Conv2d, Tensor]:
    """Draw the map, the layer and the gradient of the result, each the same in every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator)
        return values.contiguous(memory_format=layout) if values.ndim == 4 else values

    layout = torch.channels_last if shape.channels_last else torch.contiguous_format
    k, inputs, outputs = shape.kernel, shape.channels, shape.outputs
    layer = nn.Conv2d(inputs, outputs, k, stride=shape.stride, padding=k // 2, device="meta").to_empty(device="cpu")
    layer.weight = nn.Parameter(draw(outputs, inputs, k, k))
    layer.bias = nn.Parameter(draw(outputs))
    scale = 2 if shape.enlarged else 1
    height, width = (-(-scale * side // shape.stride) for side in (shape.height, shape.width))
    return draw(shape.batch, inputs, shape.height, shape.width), layer, draw(shape.batch, outputs, height, width)


def _computed(
    x: Tensor, layer: nn.Conv2d, grad: Tensor, convolution: Convolution, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the output and the gradients of input, weights and bias, in float32."""
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = convolution(leaf, layer)
    parameters = [leaf, *layer.parameters()]
    gradients = torch.autograd.grad(output.float(), parameters, grad)
    return tuple(value.detach().float() for value in (output, *gradients))


def _distance(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / (torch.linalg.vector_norm(expected) or 1.0))


def _poison_freed_memory(like: Iterable[Tensor]) -> None:
    """Allocate and free tensors of NaN and infinity, also of the sizes that come next."""
    sizes = {*_POISON, *(tensor.numel() for tensor in like)}
    held = []
    for size in sizes:
        for value in (float("nan"), float("inf")):
            held += [torch.full((size,), value), torch.full((size,), value, dtype=torch.bfloat16)]
    del held
