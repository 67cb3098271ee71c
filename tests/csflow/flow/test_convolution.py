"""The rewritten convolutions against torch's plain ones, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.flow import convolution
from csflow.flow.convolution import best_tile, convolve, convolve_enlarged, tiling

Layer = Callable[[Tensor, nn.Conv2d], Tensor]


def _plain(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)  # type: ignore[arg-type]


def _plain_enlarged(x: Tensor, layer: nn.Conv2d) -> Tensor:
    enlarged = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return _plain(enlarged, layer)


def _layer(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    torch.manual_seed(kernel)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, dtype=torch.float64)


def _value_and_gradients(function: Layer, x: Tensor, layer: nn.Conv2d, grad: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = function(x, layer)
    y.backward(grad)
    return [t.detach().clone() for t in (y, x.grad, layer.weight.grad, layer.bias.grad) if t is not None]


def _relative_error(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


SIZES = [(12, 12), (6, 6), (24, 24), (8, 4), (5, 7), (3, 3), (1, 2)]


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_exact_in_float64(kernel: int, size: tuple[int, int]) -> None:
    layer = _layer(3, 4, kernel)
    x, grad = torch.randn(64, 3, *size, dtype=torch.float64), torch.randn(64, 4, *size, dtype=torch.float64)
    expected = _value_and_gradients(_plain, x, layer, grad)
    found = _value_and_gradients(convolve, x, layer, grad)
    assert len(found) == len(expected) == 4
    for ours, plain in zip(found, expected, strict=True):
        assert ours.shape == plain.shape
        assert _relative_error(ours, plain) < 1e-12


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_taps_before_enlarging_are_exact_in_float64(kernel: int, size: tuple[int, int]) -> None:
    layer = _layer(3, 4, kernel)
    large = [2 * side for side in size]
    x, grad = torch.randn(2, 3, *size, dtype=torch.float64), torch.randn(2, 4, *large, dtype=torch.float64)
    expected = _value_and_gradients(_plain_enlarged, x, layer, grad)
    found = _value_and_gradients(convolve_enlarged, x, layer, grad)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.shape == plain.shape
        assert _relative_error(ours, plain) < 1e-12


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [12, 6, 24])
def test_tiles_keep_float32_precision(kernel: int, size: int) -> None:
    reference = _layer(64, 48, kernel)
    layer = nn.Conv2d(64, 48, kernel, padding=kernel // 2)
    layer.load_state_dict(reference.state_dict())
    x, grad = torch.randn(64, 64, size, size), torch.randn(64, 48, size, size)
    expected = _value_and_gradients(_plain, x.double(), reference, grad.double())
    for ours, exact in zip(_value_and_gradients(convolve, x, layer, grad), expected, strict=True):
        assert _relative_error(ours, exact) < 1e-5


def _uses_tiles(x: Tensor, layer: nn.Conv2d) -> bool:
    return "TiledConvolution" in type(convolve(x.requires_grad_(), layer).grad_fn).__name__


def test_tiles_are_used_where_they_pay() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    assert _uses_tiles(torch.zeros(16, 3, 12, 12), layer)
    assert not _uses_tiles(torch.zeros(1, 3, 12, 12), layer), "one image does not pay for its transformed weights"
    assert not _uses_tiles(torch.zeros(16, 3, 12, 12), nn.Conv2d(3, 4, 1)), "a kernel of one tap has nothing to save"
    assert not _uses_tiles(torch.zeros(999, 3, 12, 12), nn.Conv2d(3, 4, 9, padding=4)), "too many points lose digits"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _uses_tiles(torch.zeros(16, 3, 12, 12), layer), "bfloat16 has too few digits for tiles"


def test_a_tile_needs_fewer_products_than_taps() -> None:
    assert (best_tile(12, 3), best_tile(6, 3), best_tile(12, 5), best_tile(12, 1)) == (4, 3, 4, None)
    for size, kernel in ((12, 3), (6, 5), (7, 3)):
        tile = best_tile(size, kernel)
        assert tile is not None
        products, tiles, places = tiling(size, kernel, tile).read.shape
        assert places == size
        assert products * tiles < size * kernel


def test_one_axis_by_hand() -> None:
    axis = tiling(size=7, kernel=3, tile=4)
    x, taps = torch.randn(7, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    read = torch.einsum("pti,i->pt", axis.read, x)
    written = torch.einsum("npt,pt->n", axis.write, read * (axis.weigh @ taps)[:, None])
    padded = F.pad(x, (1, 1))
    by_hand = torch.stack([(padded[i : i + 3] * taps).sum() for i in range(7)])
    torch.testing.assert_close(written, by_hand, rtol=1e-12, atol=1e-12)


def test_taps_under_autocast_run_in_bfloat16_and_give_full_gradients() -> None:
    layer = nn.Conv2d(32, 16, 3, padding=1)
    x = torch.randn(4, 32, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolve_enlarged(x, layer)
    assert y.dtype == torch.bfloat16
    assert _relative_error(y, _plain_enlarged(x, layer)) < 2e-2
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_nothing_but_input_and_weights_is_kept_for_the_gradient() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    x = torch.randn(16, 8, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        convolve(x, layer)
        convolve_enlarged(x, layer)
    places = {t.data_ptr() for t in kept if t.numel() >= x.numel()}
    assert places == {x.data_ptr()}


def test_the_float64_tables_are_built_once() -> None:
    convolution._tiling_as.cache_clear()
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.zeros(16, 3, 12, 12)
    convolve(x, layer)
    convolve(x, layer)
    info = convolution._tiling_as.cache_info()
    assert (info.misses, info.hits) == (1, 3)


def test_tables_first_needed_for_scoring_serve_training() -> None:
    convolution._tiling_as.cache_clear()
    convolution._enlarged_taps.cache_clear()
    layer, x = _layer(3, 4, 3), torch.randn(64, 3, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        convolve(x, layer)
        convolve_enlarged(x, layer)
    (convolve(x, layer).sum() + convolve_enlarged(x, layer).sum()).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
