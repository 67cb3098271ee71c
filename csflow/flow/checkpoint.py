"""Save and load the state of a training run in one file: weights, optimiser moments, progress. No pickle.

A safetensors file whose tensors are named ``flow.NAME``, ``adam.NAME.MOMENT`` and, where weights are averaged,
``mean.NAME``, channels last; its metadata holds, as JSON, what is trained (``identity``) and how far the run got
(``progress``), and a seal over all of it (:mod:`csflow.system.seals`). The file is renamed to its final name when it is
complete, so it never holds half of a state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Adam

from csflow.errors import CsflowError, DamagedFileError, ModelError
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.system import seals
from csflow.system.files import explain_full_disk

CHECKPOINT_FILE = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "3"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch.

    Attributes:
        epoch: Counted from 1.
        epochs: Epochs of the whole run.
        nll: Mean exact negative log-likelihood a dimension over the epoch's batches, in nats.
        grad_norm: Mean gradient norm before clipping.
        seconds: Time the epoch took, interruptions not counted.
        learning_rate: Of the epoch's last step.
        held_out_nll: The same of images that are not trained on, with the weights after the epoch; None if it was not
            measured.
        again: True if the epoch was finished before a resumption, which reports it again.
    """

    epoch: int
    epochs: int
    nll: float
    grad_norm: float
    seconds: float
    learning_rate: float
    held_out_nll: float | None = None
    again: bool = field(default=False, compare=False)


@dataclass
class TrainingProgress:
    """The position of a training run; the sums are those of the current epoch.

    Attributes:
        epoch: Current epoch, counted from 1.
        step: Optimiser steps done in it.
        nll_sum: Negative log-likelihood a dimension, summed over the images seen.
        images: Images seen.
        grad_norm_sum: Gradient norm before clipping, summed over steps.
        seconds: Time spent.
        first_nll: Negative log-likelihood a dimension of the very first batch, before any step.
        finished: The epochs before the current one.
    """

    epoch: int = 1
    step: int = 0
    nll_sum: float = 0.0
    images: int = 0
    grad_norm_sum: float = 0.0
    seconds: float = 0.0
    first_nll: float | None = None
    finished: tuple[EpochResult, ...] = ()

    def after(self, result: EpochResult) -> TrainingProgress:
        """Return the position at the start of the epoch that follows a finished one."""
        return TrainingProgress(result.epoch + 1, first_nll=self.first_nll, finished=(*self.finished, result))

    @classmethod
    def from_json(cls, text: str) -> TrainingProgress:
        """Read the progress from the text of its fields as JSON."""
        plain = json.loads(text)
        return cls(**plain | {"finished": tuple(EpochResult(**row) for row in plain["finished"])})


def save_checkpoint(
    path: Path,
    flow: CrossScaleFlow,
    optimizer: Adam,
    progress: TrainingProgress,
    identity: Mapping[str, Json],
    average: Mapping[str, Tensor],
) -> None:
    """Write the state atomically; an older checkpoint stays complete until the new one is.

    Args:
        path: The checkpoint file; its folder must exist.
        flow: With all parameters already stepped at least once.
        optimizer: Over ``flow.parameters()``.
        progress: Position in the run.
        identity: What is trained; a checkpoint is refused for anything else.
        average: Mean of the parameters so far, by name; empty if none is kept.

    Raises:
        CsflowError: If the file cannot be written.
    """
    tensors = {f"flow.{name}": tensor for name, tensor in flow.state_dict().items()}
    for name, parameter in flow.named_parameters():
        tensors |= {f"adam.{name}.{moment}": optimizer.state[parameter][moment] for moment in _MOMENTS}
    tensors |= {f"mean.{name}": mean for name, mean in average.items()}
    contiguous = {name: _as_in_memory(tensor.detach()) for name, tensor in tensors.items()}
    metadata = {"format": CHECKPOINT_FORMAT, "identity": json.dumps(identity), "progress": json.dumps(asdict(progress))}
    # A fixed name, so that the next attempt overwrites what a killed process left behind.
    partial = path.with_name(f"{path.name}.part")
    try:
        save_file(contiguous, partial, metadata=metadata | {seals.KEY: seals.OPEN})
        seals.seal(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        refused = CsflowError(f"Cannot write the checkpoint {path}: {error}. Check the permissions of the folder.")
        raise explain_full_disk(error, (path.parent,)) or refused from error


def check_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its seal and its format with the present one.

    Raises:
        DamagedFileError: If it cannot be used, whatever is trained.
    """
    seals.check(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format")
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}.") from error
    if found != CHECKPOINT_FORMAT:
        raise DamagedFileError(f"{path} has format {found}, not {CHECKPOINT_FORMAT}: another csflow wrote it.")


def load_checkpoint(
    path: Path,
    flow: CrossScaleFlow,
    optimizer: Adam,
    identity: Mapping[str, Json],
    average: Mapping[str, Tensor],
) -> TrainingProgress:
    """Load a saved state that :func:`check_checkpoint` accepts into ``flow``, ``optimizer`` and ``average``.

    Returns:
        The position in the run.

    Raises:
        ModelError: If the file belongs to another configuration.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        differences = _differences(json.loads(metadata["identity"]), identity)
        if differences:
            raise ModelError(
                f"The checkpoint {path} belongs to another configuration: {'; '.join(differences)}. "
                "Train in another folder, or delete the checkpoint to start over."
            )
        tensors = {name: _from_memory(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)
    _restore(flow, optimizer, tensors)
    for name, mean in average.items():
        mean.copy_(tensors[f"mean.{name}"])
    return TrainingProgress.from_json(metadata["progress"])


def _as_in_memory(tensor: Tensor) -> Tensor:
    """Order weights channels last, as training keeps them in memory, so that the state is written without a copy."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous()


def _from_memory(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _restore(flow: CrossScaleFlow, optimizer: Adam, tensors: Mapping[str, Tensor]) -> None:
    state = {}
    for index, (name, parameter) in enumerate(flow.named_parameters()):
        step, *moments = (tensors[f"adam.{name}.{moment}"] for moment in _MOMENTS)
        # In the memory layout of the parameter, because fused Adam iterates over both alike.
        laid_out = [torch.empty_like(parameter).copy_(moment) for moment in moments]
        state[index] = dict(zip(_MOMENTS, [step, *laid_out], strict=True))
    prefix = "flow."
    flow.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _differences(saved: Mapping[str, Json], wanted: Mapping[str, Json]) -> list[str]:
    there, here = _flatten(saved), _flatten(wanted)
    keys = [*there, *(key for key in here if key not in there)]
    return [f"{k} is {there.get(k)} there, {here.get(k)} here" for k in keys if there.get(k) != here.get(k)]


def _flatten(value: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
