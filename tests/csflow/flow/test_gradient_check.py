"""Gradients that are wrong, as a library with too few threads makes them, stop a training before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csflow.errors import ModelError
from csflow.flow.gradient_check import require_sound_gradients
from tests.csflow.flow.test_training import run

CPU = torch.device("cpu")


def spoiled(which: int, value: float) -> Any:
    """A convolution of which half of one gradient (1: weights, 2: bias) is not what it should be."""

    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
            context.save_for_backward(x, weight)
            context.padding = padding
            return F.conv2d(x, weight, bias, padding=padding)

        @staticmethod
        def backward(context: Any, grad: Tensor) -> Any:  # type: ignore[override]
            x, weight = context.saved_tensors
            gradients = [
                torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=context.padding),
                torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=context.padding),
                grad.sum(dim=(0, 2, 3)),
                None,
            ]
            gradients[which][: len(gradients[which]) // 2] = value  # type: ignore[index,arg-type]
            return tuple(gradients)

    return lambda x, weight, bias, padding: Spoiled.apply(x, weight, bias, padding)


def test_this_machine_computes_gradients() -> None:
    require_sound_gradients(CPU)


@pytest.mark.parametrize("value", [0.0, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize(("which", "name"), [(1, "weights"), (2, "bias")])
def test_half_a_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch, which: int, name: str, value: float) -> None:
    convolution = spoiled(which, value)
    monkeypatch.setattr("csflow.flow.gradient_check._convolve", convolution)
    with pytest.raises(ModelError, match=f"wrong gradients: those of the {name} .*Unset OMP_DYNAMIC"):
        require_sound_gradients(CPU)


def test_no_training_begins_with_wrong_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("csflow.flow.gradient_check._convolve", spoiled(1, 0.0))
    with pytest.raises(ModelError, match="wrong gradients"):
        run(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("OMP_DYNAMIC", "true")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ModelError, match="OMP_DYNAMIC=true makes OpenMP start fewer threads"):
        run(tmp_path)
