"""Maps smaller than the kernel, and what a machine computes in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.cli import doctor
from csflow.config import FlowConfig
from csflow.errors import CsflowError
from csflow.flow import bfloat16_check, device
from csflow.flow.bfloat16_check import Shape, find_faults, most_telling_shapes, shapes_of_flows
from csflow.flow.convolution import convolve
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.small_maps import convolve_by_library, touching_taps

LIBRARY = F.conv2d


@pytest.mark.parametrize(("size", "kernel", "stride"), product(range(1, 9), (1, 3, 5, 7), (1, 2)))
def test_the_taps_left_out_meet_padding_alone(size: int, kernel: int, stride: int) -> None:
    taps = touching_taps(size, kernel, stride)
    outputs = range(0, size, stride)
    touching = [t for t in range(kernel) if any(0 <= i - kernel // 2 + t < size for i in outputs)]
    assert touching == list(range(taps.first, taps.end))
    assert len(touching) <= 2 * size - 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (1, 4), (4, 1), (3, 2), (4, 4), (8, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_small_maps_are_exact_under_autocast(height: int, width: int, kernel: int, stride: int) -> None:
    """Not only near: half precision is not used where the library goes wrong."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(3, 8, height, width, requires_grad=True)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolve_by_library(x, layer)
    assert found.dtype == (torch.float32 if min(height, width) < kernel else torch.bfloat16)
    exact = {"rtol": 1e-5, "atol": 1e-5} if found.dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    grad = torch.randn_like(expected)
    pairs = zip(
        (expected, *torch.autograd.grad(expected, (x, *layer.parameters()), grad)),
        (found, *torch.autograd.grad(found.float(), (x, *layer.parameters()), grad)),
        strict=True,
    )
    for wanted, value in pairs:
        torch.testing.assert_close(value.float(), wanted, **exact)


def test_without_autocast_nothing_changes() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 5, padding=2)
    x = torch.randn(3, 8, 2, 2)
    assert torch.equal(convolve_by_library(x, layer), layer(x))


class _Uninitialised(torch.autograd.Function):
    """The library's convolution as it is on some CPUs: the gradient of the weights is whatever the memory holds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.stride = padding, stride
        return LIBRARY(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            output = LIBRARY(leaf, weight.detach(), None, ctx.stride, ctx.padding)
        (grad_x,) = torch.autograd.grad(output, leaf, grad.to(output.dtype))
        return grad_x, torch.empty_like(weight), grad.sum(dim=(0, 2, 3)), None, None


@pytest.fixture
def broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 x 5 taps in bfloat16 on one pixel are computed as plain torch 2.15 does with AVX512-BF16."""

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any = 0, *others: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu") and weight.shape[2:] == (5, 5) and x.shape[2:] == (1, 1):
            padding, stride = (value if isinstance(value, int) else value[0] for value in (padding, stride))
            return _Uninitialised.apply(x, weight, bias, padding, stride)  # type: ignore[no-any-return]
        return LIBRARY(x, weight, bias, stride, padding, *others)

    monkeypatch.setattr(F, "conv2d", conv2d)


ONE_PIXEL = Shape(5, 1, 1, 256, 160)


def test_uninitialised_gradients_would_be_found(broken_library: None) -> None:
    faults, done = find_faults([ONE_PIXEL, Shape(3, 2, 2, 64, 32)], convolution=lambda x, layer: layer(x))
    assert done == 2
    assert [fault.shape for fault in faults] == [ONE_PIXEL]
    assert "gradient of the weights" in faults[0].what


def test_the_flow_avoids_them(broken_library: None) -> None:
    assert find_faults([ONE_PIXEL]) == ([], 1)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda y: torch.empty_like(y).copy_(y) * torch.rand(1), "output d"),
        (lambda y: y * float("nan"), "the output is not finite"),
        (lambda y: y * 1.05, "the output differs from float32 by 0.05"),
    ],
)
def test_every_kind_of_fault_is_named(spoil: Callable[[Tensor], Tensor], expected: str) -> None:
    def convolution(x: Tensor, layer: nn.Conv2d) -> Tensor:
        y = convolve(x, layer)
        return spoil(y) if torch.is_autocast_enabled("cpu") else y

    ((fault,), done) = find_faults([Shape(3, 2, 2, 16, 8)], convolution=convolution)
    assert (done, expected in fault.what) == (1, True), fault.what


def test_a_result_that_changes_from_call_to_call_is_found() -> None:
    calls: list[int] = []

    def convolution(x: Tensor, layer: nn.Conv2d) -> Tensor:
        calls.append(1)
        return convolve(x, layer) * (1 + 1e-3 * (len(calls) == 4))

    ((fault,), _) = find_faults([Shape(3, 2, 2, 16, 8)], convolution=convolution)
    assert fault.what == "the output differs from call to call"


def test_this_machine_computes_the_telling_shapes_rightly() -> None:
    faults, done = find_faults([shape for shape in most_telling_shapes() if not shape.enlarged])
    assert (faults, done) == ([], 14)


@pytest.mark.slow
def test_this_machine_computes_all_shapes_of_flows_rightly() -> None:
    faults, done = find_faults(shapes_of_flows())
    assert faults == [], f"of {done} shapes"


def test_a_flow_on_one_pixel_trains_as_in_float32(broken_library: None) -> None:
    """Maps of 4, 2 and 1 pixels, as at 96 px: every gradient is that of float32, again and again."""
    torch.manual_seed(0)
    flow = CrossScaleFlow(FlowConfig(blocks=4, hidden=32), channels=24, scales=3)
    flow = flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    pyramid = [torch.randn(4, 24, side, side) for side in (4, 2, 1)]

    def gradients(enabled: bool) -> dict[str, Tensor]:
        flow.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            latents, log_det = flow(pyramid)
        flow.negative_log_likelihood(latents, log_det).mean().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad.clone() for name, p in flow.named_parameters() if p.grad is not None}

    expected = gradients(False)
    first = gradients(True)
    for _ in range(3):
        bfloat16_check._poison_freed_memory(expected.values())
        found = gradients(True)
        assert [name for name in found if not torch.equal(found[name], first[name])] == []
    for name, grad in expected.items():
        assert bfloat16_check._distance(first[name], grad) < 0.1, name


class TestDoctor:
    def test_a_sound_machine(self) -> None:
        assert "tried on this CPU: all agree with float32" in doctor._bfloat16()

    def test_a_machine_that_trains_wrongly(self, broken_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bfloat16_check, "_of_the_flow", lambda shape: lambda x, layer: layer(x))
        monkeypatch.setattr(bfloat16_check, "most_telling_shapes", lambda: [ONE_PIXEL])
        monkeypatch.setattr(device, "_cpu_multiplies_bfloat16", lambda: False)
        assert "does not use it unless" in doctor._bfloat16()
        monkeypatch.setattr(device, "_cpu_multiplies_bfloat16", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(CsflowError, match=r"1 of 1 .*5 x 5 taps on 16 maps of 1 x 1.*training\.precision: float32"):
            doctor._bfloat16()
