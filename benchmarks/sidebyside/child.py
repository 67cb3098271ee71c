"""Answer calls in a process of its own, one JSON line each, and measure its memory."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_STATUS = Path("/proc/self/status")


class Channel:
    """Requests ``{"call": name, "with": {...}}`` and answers ``{"value": ...}`` or ``{"error": traceback}``."""

    def __init__(self) -> None:
        """Take over standard output, because libraries print and only answers may reach its reader."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> Any:
        """Read the next request; ``None`` at the end of the input."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, **answer: Any) -> None:
        """Answer the last request."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def serve(make: Callable[[Channel], object]) -> None:
    """Create a driver at the first request and run the requested methods until the input ends."""
    channel = Channel()
    driver: object | None = None
    while (request := channel.receive()) is not None:
        try:
            driver = driver or make(channel)
            value = getattr(driver, request["call"])(**request["with"])
        except Exception:
            channel.send(error=traceback.format_exc())
        else:
            channel.send(value=value)


def warm_torch(device: object = "cpu") -> None:
    """Make torch import what its optimisers import at first use (200 MB, 2 s), which would count as training otherwise.

    Whether a process has already done so depends only on its other imports.
    """
    import torch

    layer = torch.nn.Conv2d(1, 1, 1).to(str(device))
    for fused in (False, True):
        optimizer = torch.optim.Adam(layer.parameters(), fused=fused)
        layer(torch.ones(1, 1, 2, 2, device=str(device))).sum().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()


class Memory:
    """The peak memory of this process, or of its GPU, above its use when measuring began.

    Args:
        device: ``cuda`` measures what torch allocates there, anything else the process itself.
    """

    def __init__(self, device: object = "cpu") -> None:
        self._cuda = str(device).startswith("cuda")
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.baseline = torch.cuda.memory_allocated() / 1e6
        else:
            # Make the kernel forget the former peak, which importing may have set.
            Path("/proc/self/clear_refs").write_text("5")
            self.baseline = _megabytes("VmRSS")

    def peak(self) -> float:
        """Return the megabytes above the use at the beginning."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 1e6 - self.baseline
        return _megabytes("VmHWM") - self.baseline


@contextmanager
def kept_for_gradients(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Count, inside the block, what a forward pass keeps for its gradients besides the parameters.

    Yields:
        A function that returns the megabytes so far; a tensor kept twice counts once.
    """
    import torch

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own) / 1e6


def _megabytes(field: str) -> float:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6
