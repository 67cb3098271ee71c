r"""Compute the flow's convolutions exactly, in fewer multiplications.

Both rewrites are linear and exact up to rounding:

*Tiles* (Toom–Cook, known as Winograd convolution). Along one axis, ``m`` outputs of a kernel of ``k`` taps need
``m + k - 1`` products instead of ``m k``:

.. math:: y = A \, [(G w) \odot (B d)]

with ``d`` the inputs of a tile; in two dimensions both axes are treated in this way. The products over all channels,
tiles and images are then one batch of matrix products.

*Taps at the coarse scale*. A bilinearly enlarged map contains no more information than the small one. Every tap of a
convolution is a 1 x 1 convolution, which commutes with the enlargement; so the taps are applied to the small map (a
quarter of the work), then enlarged, shifted and summed.

Reference:
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (tiles). Measured in
    docs/decisions/007-exact-fast-convolutions.md.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from csflow.flow.small_maps import convolve_by_library

Rows: TypeAlias = list[list[Fraction]]

_TILES = (4, 3, 2)
_POINTS = tuple(Fraction(*p) for p in ((0, 1), (1, 1), (-1, 1), (2, 1), (-2, 1), (1, 2), (-1, 2)))
"""Points at which the polynomials are evaluated, besides infinity; more lose too many digits for the work saved."""

_ROWS_THAT_PAY = 64
"""Tiles of a batch above which transforming the weights pays off, measured for kernels 3 and 5."""


class Tiling(NamedTuple):
    """The matrices of a tiled convolution along one axis.

    Attributes:
        read: ``B``, ``(products, tiles, pixels)``: from the pixels of a map to the tiles; padding is included.
        weigh: ``G``, ``(products, taps)``: from the taps of a kernel to its weights.
        write: ``A``, ``(pixels, products, tiles)``: from the tiles to the pixels of the result.
    """

    read: Tensor
    weigh: Tensor
    write: Tensor


def convolve(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply a size-preserving convolution of odd kernel and stride 1, by tiles where that is faster.

    Tiles are used on a CPU in full precision if the batch is large enough for the transformed weights to pay off.

    Args:
        x: ``(B, C, h, w)``.
        layer: Its kernel, with ``padding = kernel // 2``.

    Returns:
        ``(B, outputs, h, w)``.
    """
    kernel = layer.kernel_size[0]
    tilings = _tilings_that_pay(x, kernel)
    if tilings is None:
        return convolve_by_library(x, layer)
    return cast(Tensor, _TiledConvolution.apply(x, layer.weight, layer.bias, *tilings))


def convolve_enlarged(x: Tensor, layer: nn.Conv2d) -> Tensor:
    r"""Enlarge a map twofold (bilinear, corners not aligned), then convolve it, keeping that size.

    .. math:: \sum_j S_j U (W_j x)

    with ``W_j`` tap ``j`` as a 1 x 1 convolution, ``U`` the enlargement and ``S_j`` the shift of that tap.

    Args:
        x: ``(B, C, h, w)``.
        layer: Odd kernel, stride 1, ``padding = kernel // 2``.

    Returns:
        ``(B, outputs, 2 h, 2 w)``, in autocast's precision if autocast is enabled.
    """
    device = x.device.type
    bias = layer.bias
    assert bias is not None
    tensors = (x, layer.weight, bias)
    if torch.is_autocast_enabled(device):
        reduced = torch.get_autocast_dtype(device)
        tensors = (x.to(reduced), layer.weight.to(reduced), bias.to(reduced))
    kernel = layer.kernel_size[0]
    dtype = tensors[0].dtype
    writes = [_enlarged_taps(int(size), kernel, dtype, x.device) for size in x.shape[2:]]
    with torch.autocast(device, enabled=False):
        if torch.onnx.is_in_onnx_export():  # other engines know no autograd functions
            return _enlarged(*tensors, *writes)
        return cast(Tensor, _EnlargedConvolution.apply(*tensors, *writes))


def tiling(size: int, kernel: int, tile: int) -> Tiling:
    """Make the matrices for a map of ``size`` pixels, in float64, from exact fractions.

    Args:
        size: Pixels along the axis.
        kernel: Odd number of taps.
        tile: Outputs of one tile.
    """
    write, weigh, read = _toom_cook(tile, kernel)
    products, tiles = tile + kernel - 1, -(-size // tile)
    reads = np.zeros((products, tiles, size))
    writes = np.zeros((size, products, tiles))
    for t in range(tiles):
        for j in range(products):
            pixel = t * tile - kernel // 2 + j
            if 0 <= pixel < size:
                reads[:, t, pixel] += read[:, j]
        for i in range(min(tile, size - t * tile)):
            writes[t * tile + i, :, t] = write[i]
    return Tiling(torch.from_numpy(reads), torch.from_numpy(weigh), torch.from_numpy(writes))


def best_tile(size: int, kernel: int) -> int | None:
    """Return the number of outputs of a tile that needs the fewest products; ``None`` if tiles save none."""
    possible = [tile for tile in _TILES if tile + kernel - 2 <= len(_POINTS)]
    costs = {tile: -(-size // tile) * (tile + kernel - 1) for tile in possible}
    best = min(costs, key=lambda tile: costs[tile], default=None)
    return best if best is not None and costs[best] < size * kernel else None


def _tilings_that_pay(x: Tensor, kernel: int) -> tuple[Tiling, Tiling] | None:
    """Return the tilings of height and width; ``None`` if the plain convolution is at least as fast."""
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if kernel < 3 or x.device.type != "cpu" or not full or torch.onnx.is_in_onnx_export():
        return None
    tiles = [best_tile(size, kernel) for size in x.shape[2:]]
    if None in tiles:
        return None
    height, width = (
        _tiling_as(size, kernel, cast(int, tile), x.dtype) for size, tile in zip(x.shape[2:], tiles, strict=True)
    )
    if len(x) * height.read.shape[1] * width.read.shape[1] < _ROWS_THAT_PAY:
        return None
    return height, width


@lru_cache(maxsize=64)
def _tiling_as(size: int, kernel: int, tile: int, dtype: torch.dtype) -> Tiling:
    with torch.inference_mode(False):  # a table first needed for scoring must serve training, too
        return Tiling(*(matrix.to(dtype) for matrix in tiling(size, kernel, tile)))


class _TiledConvolution(torch.autograd.Function):
    """Save only the input and the weights: reading the tiles again for the gradients costs less than keeping them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, height: Tiling, width: Tiling) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.tilings = (height, width)
        products = torch.bmm(_read(x, height.read, width.read), _weigh(weight, height, width).transpose(1, 2))
        return _write(products, height.write, width.write, len(x)).add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        height, width = ctx.tilings
        rows = _read(grad, _read_of(height.write), _read_of(width.write))
        grad_tiles = torch.bmm(rows, _weigh(weight, height, width))
        grad_x = _write(grad_tiles, _write_of(height.read), _write_of(width.read), len(x))
        del grad_tiles
        grad_products = torch.bmm(rows.transpose(1, 2), _read(x, height.read, width.read))
        return grad_x, _unweigh(grad_products, height, width), grad.sum(dim=(0, 2, 3)), None, None


class _EnlargedConvolution(torch.autograd.Function):
    """Save only the input and the weights, not the nine or 25 maps of the taps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, height: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, height, width)
        return _enlarged(x, weight, bias, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, height, width = ctx.saved_tensors
        outputs, channels, kernel, _ = weight.shape
        batch, _, h, w = x.shape
        pixels = grad.permute(0, 2, 3, 1).contiguous()
        along_width = torch.matmul(width.flatten(1).t(), pixels.view(batch * 2 * h, 2 * w, outputs))
        along_both = torch.matmul(height.flatten(1).t(), along_width.view(batch, 2 * h, kernel * w * outputs))
        split = along_both.view(batch, kernel, h, kernel, w, outputs)
        taps = split.permute(0, 2, 4, 1, 3, 5).reshape(batch * h * w, kernel * kernel * outputs)
        grad_x = (taps @ _taps_first(weight)).view(batch, h, w, channels).permute(0, 3, 1, 2)
        grad_weight = taps.t() @ x.permute(0, 2, 3, 1).reshape(-1, channels)
        grad_weight = grad_weight.view(kernel, kernel, outputs, channels).permute(2, 3, 0, 1)
        return grad_x, grad_weight, grad.sum(dim=(0, 2, 3)), None, None


def _read(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Map ``(B, C, h, w)`` to ``(products, rows, C)``: products of both axes, one row for each image and tile."""
    batch, channels, h, w = x.shape
    (products_h, tiles_h, _), (products_w, tiles_w, _) = height.shape, width.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch * h, w, channels)
    along_width = torch.matmul(width.view(-1, w), pixels).view(batch, h, -1)
    along_both = torch.matmul(height.view(-1, h), along_width)
    split = along_both.view(batch, products_h, tiles_h, products_w, tiles_w, channels)
    return split.permute(1, 3, 0, 2, 4, 5).reshape(products_h * products_w, batch * tiles_h * tiles_w, channels)


def _write(rows: Tensor, height: Tensor, width: Tensor, batch: int) -> Tensor:
    """Map ``(products, rows, C)`` to ``(B, C, h, w)``, channels last in memory."""
    (h, products_h, tiles_h), (w, products_w, tiles_w) = height.shape, width.shape
    channels = rows.shape[-1]
    split = rows.view(products_h, products_w, batch, tiles_h, tiles_w, channels).permute(2, 0, 3, 1, 4, 5)
    along_height = torch.matmul(height.view(h, -1), split.reshape(batch, products_h * tiles_h, -1))
    pixels = torch.matmul(width.view(w, -1), along_height.view(batch * h, products_w * tiles_w, channels))
    return pixels.view(batch, h, w, channels).permute(0, 3, 1, 2)


def _weigh(weight: Tensor, height: Tiling, width: Tiling) -> Tensor:
    """Map ``(outputs, C, k, k)`` to ``(products, outputs, C)``."""
    return torch.matmul(torch.kron(height.weigh, width.weigh), _taps_middle(weight)).transpose(0, 1)


def _unweigh(grad: Tensor, height: Tiling, width: Tiling) -> Tensor:
    """Return the gradient of a weight from that of its products ``(products, outputs, C)``."""
    _, outputs, channels = grad.shape
    taps = torch.kron(height.weigh, width.weigh).t().contiguous() @ grad.view(len(grad), -1)
    kernel = height.weigh.shape[1]
    return taps.view(kernel, kernel, outputs, channels).permute(2, 3, 0, 1)


def _enlarged(x: Tensor, weight: Tensor, bias: Tensor, height: Tensor, width: Tensor) -> Tensor:
    channels, h, w = (int(size) for size in x.shape[1:])  # constants in an exported graph, too
    outputs, _, kernel, _ = (int(size) for size in weight.shape)
    taps = x.permute(0, 2, 3, 1).reshape(-1, channels) @ _taps_first(weight).t()
    split = taps.view(-1, h, w, kernel, kernel, outputs).permute(0, 3, 1, 4, 2, 5)
    along_height = torch.matmul(height.flatten(1), split.reshape(-1, kernel * h, kernel * w * outputs))
    pixels = torch.matmul(width.flatten(1), along_height.view(-1, kernel * w, outputs))
    return (pixels + bias).view(-1, 2 * h, 2 * w, outputs).permute(0, 3, 1, 2)


def _taps_middle(weight: Tensor) -> Tensor:
    """View ``(outputs, C, k, k)`` as ``(outputs, k k, C)``, without a copy if the weight is channels-last in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2)


def _taps_first(weight: Tensor) -> Tensor:
    """Order ``(outputs, C, k, k)`` as ``(k k outputs, C)``, so that later steps move whole rows of outputs."""
    return weight.permute(2, 3, 0, 1).flatten(0, 2)


def _read_of(write: Tensor) -> Tensor:
    """Return the matrix that reads where ``write`` writes: its transpose."""
    return write.permute(1, 2, 0).contiguous()


def _write_of(read: Tensor) -> Tensor:
    """Return the matrix that writes where ``read`` reads: its transpose."""
    return read.permute(2, 0, 1).contiguous()


@lru_cache(maxsize=64)
def _enlarged_taps(size: int, kernel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``(2 size, kernel, size)``: how the taps of a kernel at the small pixels add up at the large ones."""
    with torch.inference_mode(False):  # a table first needed for scoring must serve training, too
        unit = torch.eye(size, dtype=torch.float64)[:, None]
        enlarge = F.interpolate(unit, scale_factor=2.0, mode="linear", align_corners=False)[:, 0].t()
        padded = F.pad(enlarge, (0, 0, kernel // 2, kernel // 2))
        return torch.stack([padded[tap : tap + 2 * size] for tap in range(kernel)], dim=1).to(device, dtype)


@lru_cache(maxsize=16)
def _toom_cook(tile: int, kernel: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return ``A`` (tile, products), ``G`` (products, kernel) and ``B`` (products, products) of one tile.

    Polynomials are multiplied by evaluating them, multiplying the values and interpolating; a convolution is this
    algorithm transposed in its first factor.
    """
    products = tile + kernel - 1
    points = _POINTS[: products - 1]
    interpolate = _inverse(_evaluation(points, products))
    weigh = _evaluation(points, kernel)
    read = [list(column) for column in zip(*interpolate, strict=True)]
    for row, (reads, weighs) in enumerate(zip(read, weigh, strict=True)):
        # Scaling one factor of a product up and the other down changes nothing but the rounding.
        factor = Fraction(2) ** round(-np.log2(float(max(abs(value) for value in reads))))
        read[row] = [value * factor for value in reads]
        weigh[row] = [value / factor for value in weighs]
    write = [list(column) for column in zip(*_evaluation(points, tile), strict=True)]
    return np.array(write, float), np.array(weigh, float), np.array(read, float)


def _evaluation(points: tuple[Fraction, ...], terms: int) -> Rows:
    """Evaluate a polynomial of ``terms`` coefficients at the points and, in the last row, at infinity."""
    return [[point**power for power in range(terms)] for point in points] + [
        [Fraction(0)] * (terms - 1) + [Fraction(1)]
    ]


def _inverse(matrix: Rows) -> Rows:
    """Invert a matrix by Gauss–Jordan elimination in fractions."""
    size = len(matrix)
    rows = [row + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for row in range(size):
            if row != column and (factor := rows[row][column]):
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[size:] for row in rows]
