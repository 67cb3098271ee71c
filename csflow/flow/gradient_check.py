"""Find out whether this machine computes the gradients of convolutions at all, before a training relies on them.

oneDNN, which computes torch's convolutions on CPUs, divides a weight's gradient among the threads it asked OpenMP for.
If it gets fewer (``OMP_DYNAMIC=true``, a low ``OMP_THREAD_LIMIT``), the parts of the missing ones are memory that
nothing wrote to. Nothing fails: the flow is trained on noise, or to values that are not finite. On processors with
AVX-512 the threads that are there wait for the missing ones instead, for ever (pytorch/pytorch#91547).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csflow.errors import ModelError
from csflow.system.threads import why_fewer

TOLERANCE = 0.02
"""Largest relative difference (Euclidean norm); missing threads make 0.7 or more, TF32 of a GPU about 0.001."""

_REMEDY = (
    " Gradients would be wrong. Unset OMP_DYNAMIC, OMP_THREAD_LIMIT and OMP_MAX_ACTIVE_LEVELS, or set "
    "OMP_NUM_THREADS=1, and start again."
)
_convolve = F.conv2d
_IMAGES, _CHANNELS, _SIDE, _TAPS = 16, 32, 8, 3


def require_sound_gradients(device: torch.device) -> None:
    """Compute the gradients of a small convolution in float32 and compare them with a matrix product in float64.

    It takes some milliseconds. On a CPU, variables with which it might never end are refused before.

    Args:
        device: Where the training takes place.

    Raises:
        ModelError: If they differ.
    """
    reason = why_fewer(torch.get_num_threads()) if device.type == "cpu" else None
    if reason is not None:
        raise ModelError(f"{reason} makes OpenMP start fewer threads than torch counts on.{_REMEDY}")
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, _IMAGES, _CHANNELS, _SIDE, _SIDE, generator=generator)
    weights = torch.randn(_CHANNELS, _CHANNELS, _TAPS, _TAPS, generator=generator).to(device).requires_grad_()
    bias = torch.zeros(_CHANNELS, device=device, requires_grad=True)
    output = _convolve(x.to(device), weights, bias, padding=_TAPS // 2)
    found = torch.autograd.grad(output, [weights, bias], grad.to(device))
    for name, value, expected in zip(("weights", "bias"), found, _expected(x, grad), strict=True):
        distance = float(torch.linalg.vector_norm(value.double().cpu() - expected) / torch.linalg.vector_norm(expected))
        if not distance <= TOLERANCE:
            raise ModelError(
                f"This machine computes wrong gradients: those of the {name} of a convolution differ by {distance:.2g} "
                f"(relative, at most {TOLERANCE} is allowed) from what they are. On a CPU, OpenMP then starts fewer "
                f"threads than the {torch.get_num_threads()} that torch counts on.{_REMEDY}"
            )


def _expected(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and bias, from the pixels under each tap."""
    pixels = F.unfold(x.double(), _TAPS, padding=_TAPS // 2)  # (B, C * taps, positions)
    weights = torch.einsum("bop,bip->oi", grad.double().flatten(2), pixels)
    return weights.view(_CHANNELS, _CHANNELS, _TAPS, _TAPS), grad.double().sum(dim=(0, 2, 3))
