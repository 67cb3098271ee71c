"""The folder that all processes of one run share, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidebyside.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Bench:
    """The files of one run.

    Attributes:
        folder: Holds all of them.
        settings: What is measured.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings.load(folder / "settings.json")

    @cached_property
    def images(self) -> list[Path]:
        """Return the image files, the same for everyone."""
        return [Path(name) for name in json.loads((self.folder / "images.json").read_text())]

    @property
    def detector(self) -> Path:
        """Return our detector directory."""
        return self.folder / "detector"

    @property
    def store(self) -> Path:
        """Return the root of our feature store."""
        return self.folder / "store"

    def save(self, name: str, values: Mapping[str, Any]) -> None:
        """Save JSON values."""
        (self.folder / f"{name}.json").write_text(json.dumps(values))

    def read(self, name: str) -> dict[str, Any]:
        """Read the values that :meth:`save` wrote."""
        values: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return values

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors by name."""
        import torch

        torch.save(dict(tensors), self.folder / f"{name}.pt")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors that :meth:`save_tensors` wrote, on the CPU."""
        import torch

        state: dict[str, Tensor] = torch.load(self.folder / f"{name}.pt", map_location="cpu", weights_only=True)
        return state

    def pyramid(self, name: str) -> list[Tensor]:
        """Read levels saved as tensors ``0``, ``1``, …, finest first."""
        state = self.tensors(name)
        return [state[str(i)] for i in range(len(state))]

    def save_pyramid(self, name: str, levels: list[Tensor]) -> None:
        """Save levels, finest first."""
        self.save_tensors(name, {str(i): level for i, level in enumerate(levels)})
