"""Save a fitted model as a safetensors file, and restore it.

The file holds the model's parameters in half precision and its buffers as they are, with integers narrowed, and a seal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csflow.config import LineConfig
from csflow.detector.fitting import implementation_of
from csflow.detector.model import Model
from csflow.errors import DamagedFileError, ModelError
from csflow.features.entries import Shape
from csflow.system import seals


def round_to_stored(model: nn.Module) -> None:
    """Give a model, in place, the values that its file will hold.

    It must be done before thresholds are calibrated with the model.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    model.load_state_dict(_stored(model))


def save_model(model: nn.Module, path: Path) -> None:
    """Write a model's file; it is read again with the values that :func:`round_to_stored` gives.

    Args:
        model: The model.
        path: The file; replaced if it exists.

    Raises:
        ModelError: If a weight exceeds the range of half precision.
    """
    save_file(_stored(model), path, metadata={seals.KEY: seals.OPEN})
    seals.seal(path)
    # safetensors makes files that only their owner may read, but another user serves the detector.
    path.chmod(0o644)


def load_model(path: Path, line: LineConfig, shapes: tuple[Shape, ...]) -> Model:
    """Read the model of a line.

    Args:
        path: The file that :func:`save_model` wrote, in this or an earlier version.
        line: The line's configuration.
        shapes: ``(C, h, w)`` of every feature map.

    Raises:
        ModelError: If the file is missing, damaged or of another configuration.
    """
    try:
        seals.check(path, required=False)
        model = implementation_of(line.detector).restore(line, shapes, load_file(path))
    except DamagedFileError as error:
        raise ModelError(f"{error} Train or download the detector again.") from error
    except (SafetensorError, RuntimeError, OSError, TypeError, IndexError, ValueError) as error:
        raise ModelError(f"{path} does not fit the configuration: {error}. Train or download it again.") from error
    return model.eval()


def flow_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a flow's tensors under their present names.

    Args:
        state: The tensors of a model's file; before format 3 of the detector directory, names had no prefix ``flow.``.
    """
    return {name if name.startswith("flow.") else f"flow.{name}": tensor for name, tensor in state.items()}


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Return the state as it is stored: weights in half precision, integers narrowed, other buffers as they are."""
    weights = dict(model.named_parameters())
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    stored = {name: _narrow(tensor, weight=name in weights).contiguous() for name, tensor in state.items()}
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of the model, {broken[0]} the first, are not finite in half precision. "
            "If it was trained, it diverged: lower training.learning_rate; for PaDiM raise padim.regularization."
        )
    return stored


def _narrow(tensor: Tensor, *, weight: bool) -> Tensor:
    if weight:
        return tensor.half()
    if not tensor.is_floating_point() and int(tensor.max()) <= torch.iinfo(torch.int16).max:
        return tensor.to(torch.int16)
    return tensor
