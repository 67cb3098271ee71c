"""Measure where the rewritten convolutions of csflow/flow/convolution.py pay off, for each shape of the flow.

Prints the time of one forward and backward pass, plain (channels-last) and rewritten, alternating in one run, and the
relative error (Euclidean norm, the largest of output and gradients) of both against float64.

    python benchmarks/convolution.py --width 1024
    python benchmarks/convolution.py --width 96 --batch 16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.flow.convolution import convolve, convolve_enlarged

Layer = Callable[[Tensor, nn.Conv2d], Tensor]


def plain(x: Tensor, layer: nn.Conv2d) -> Tensor:
    result: Tensor = layer(x)
    return result


def plain_enlarged(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return plain(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False), layer)


def run(function: Layer, x: Tensor, layer: nn.Conv2d) -> list[Tensor]:
    """Return output and gradients of one pass whose incoming gradient is the output itself."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = function(x, layer)
    y.backward(y.detach())  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert layer.weight.grad is not None
    return [y.detach(), x.grad, layer.weight.grad]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float(((a.double() - b).norm() / b.norm()).item()) for a, b in zip(found, exact, strict=True))


def compare(name: str, functions: tuple[Layer, Layer], layer: nn.Conv2d, x: Tensor, repeats: int) -> None:
    exact_layer = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size[0], padding=layer.padding[0], dtype=torch.float64
    )
    exact_layer.load_state_dict(layer.state_dict())
    exact = run(functions[0], x.double(), exact_layer)
    seconds: tuple[list[float], list[float]] = ([], [])
    errors = [error(run(function, x, layer), exact) for function in functions]
    for _ in range(repeats):
        for function, times in zip(functions, seconds, strict=True):
            began = time.perf_counter()
            run(function, x, layer)
            times.append(time.perf_counter() - began)
    before, after = (1000 * median(times) for times in seconds)
    print(
        f"| {name} | {before:.1f} | {after:.1f} | {before / after:.2f} | {errors[0]:.0e} | {errors[1]:.0e} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="hidden channels of the flow")
    parser.add_argument("--channels", type=int, default=192, help="channels of the features")
    parser.add_argument("--side", type=int, default=12, help="side of the finest map")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    width, half, both = arguments.width, arguments.channels // 2, arguments.channels
    torch.manual_seed(0)
    print(f"threads: {torch.get_num_threads()}\n")
    print(
        "| convolution | plain ms | rewritten ms | ratio | error plain | error rewritten |\n|---|---|---|---|---|---|"
    )
    for kernel in (3, 5):
        for side in (arguments.side, arguments.side // 2, arguments.side // 4):
            for inputs, outputs, role in ((half, width, "inner"), (width, both, "own"), (width, both, "up")):
                if role == "up" and side == arguments.side:
                    continue
                layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).to(memory_format=torch.channels_last)
                x = torch.randn(arguments.batch, inputs, side, side).contiguous(memory_format=torch.channels_last)
                functions = (plain_enlarged, convolve_enlarged) if role == "up" else (plain, convolve)
                name = f"{role} {inputs} to {outputs}, kernel {kernel}, {side} x {side}"
                compare(name, functions, layer, x, arguments.repeats)


if __name__ == "__main__":
    main()
