r"""Train in several processes, each with a device of its own, that all take the same steps.

Every process computes its share of a batch, and all gradients are summed before they are clipped and applied:

.. math:: \nabla \mathcal{L} = \sum_r \frac{B_r}{B} \nabla \mathcal{L}_r, \quad
          \mathcal{L}_r = \frac{1}{B_r} \sum_{b \in r} \ell_b

with ``B`` the images of the batch and ``B_r`` those of process ``r``, which may be none. That is the gradient of a
single process, except for the order of a floating-point sum. Weights and moments stay equal in all processes because
they start equal and every process receives the same bits of every sum.

Reference:
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 3 (normalise by the total
    size of the batch; clip and measure the norm after summing).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from csflow.errors import ModelError, UsageError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees them; by default it is alone.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Return True in the process that writes files and reports progress."""
        return self.rank == 0

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """Return this process's part of a batch, which may be empty. Parts are consecutive and of about equal size."""
        return batch[self.rank * len(batch) // self.size : (self.rank + 1) * len(batch) // self.size]

    def sum_gradients(self, parameters: Iterable[Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients of all processes, in place, and their losses.

        Args:
            parameters: In the same order in all processes. A missing gradient counts as 0 and is created.
            loss: This process's part of the loss, a scalar on the device of the parameters.

        Returns:
            The sum of all losses.
        """
        if self.size == 1:
            return loss
        gradients = [_gradient(parameter) for parameter in parameters]
        # A single message, because each of many small ones would wait for the slowest process.
        message = torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1).to(gradients[0].dtype)])
        distributed.all_reduce(message)
        *summed, total = torch.split(message, [*(gradient.numel() for gradient in gradients), 1])
        for gradient, values in zip(gradients, summed, strict=True):
            gradient.copy_(values.view(gradient.shape))
        return total[0]

    def agree(self, number: int) -> int:
        """Return the largest number of any process, the same in all; it waits for the others, but for no GPU."""
        if self.size == 1:
            return number
        largest = torch.tensor([number])
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return int(largest.item())


ALONE = ProcessGroup()
"""The group of a training in one process."""


@contextmanager
def join_process_group(*, device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the process group in which ``torchrun`` started this process, and leave it at the end of the block.

    Args:
        device: ``training.device``. On GPUs every process takes one, and NCCL transfers the gradients; else gloo does.

    Yields:
        The group; a group of one if ``torchrun`` did not start this process.

    Raises:
        ModelError: If this machine has fewer GPUs than processes.
        UsageError: If several processes cannot share the device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    distributed.init_process_group(_backend(device))
    try:
        yield ProcessGroup(rank=distributed.get_rank(), size=size)
    finally:
        distributed.destroy_process_group()


def _backend(device: str) -> str:
    """Choose the communication backend; on GPUs also make this process's GPU the one that ``cuda`` means."""
    if device == "mps":
        raise UsageError("training.device is mps, of which a machine has one. Train in one process, or on cpu or cuda.")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "gloo"
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= here:
        processes = os.environ.get("LOCAL_WORLD_SIZE", str(local + 1))
        raise ModelError(
            f"{processes} processes train on this machine, which shows {here} CUDA devices; each needs one of its own. "
            "Start as many as there are devices (--nproc-per-node), or set training.device to cpu."
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _gradient(parameter: Parameter) -> Tensor:
    if parameter.grad is None:  # this process had no image of the batch
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
