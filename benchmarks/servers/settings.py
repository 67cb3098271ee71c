"""The settings of a run, as they are passed from process to process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKS = ("clients", "starvation", "lines", "hostile", "departed", "soak", "quota")

PROTOCOLS = ("v1", "v2", "v2-binary", "grpc")

LINE = "line-0"
OTHER = "line-1"
"""The lines of servers with two; where one is enough, it is the first."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        works: Which works, names of ``WORKS``.
        protocols: Which protocols of the work ``clients``, names of ``PROTOCOLS``.
        clients: How many clients send at once, one measurement each.
        seconds: Duration of one measurement.
        repeats: Measured repeats; the median counts.
        size: Side of the detector's largest input in pixels.
        width: Hidden channels of the flow in all works but ``lines``.
        blocks: Coupling blocks of the flow.
        images: How many different images are sent.
        side: Sides of the drawn images in pixels.
        heavy: Images in one request of the clients that keep others waiting.
        lines: Numbers of lines in one server.
        widths: Widths of the flows in the work ``lines``.
        minutes: Of the work ``soak``.
        departed: Clients that disconnect.
        scale: Size of the hostile requests, 1 for those that are just below what version 0.4 takes.
        guard: Megabytes of a server above which it is killed, because the machine would run out of memory.
        fresh: True to start new servers for every work; False to go on with those of the last one.
        seed: Of weights and drawn images.
        folder: Folder of the images to send; without it, images are drawn.
    """

    works: tuple[str, ...] = WORKS
    protocols: tuple[str, ...] = PROTOCOLS
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 5.0
    repeats: int = 3
    size: int = 384
    width: int = 96
    blocks: int = 4
    images: int = 32
    side: int = 400
    heavy: int = 64
    lines: tuple[int, ...] = (1, 8, 30)
    widths: tuple[int, ...] = (64, 256)
    minutes: float = 10.0
    departed: int = 30
    scale: float = 1.0
    guard: int = 6000
    fresh: bool = True
    seed: int = 0
    folder: str | None = None

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the settings that :meth:`save` wrote."""
        fields: dict[str, Any] = json.loads(path.read_text())
        lists: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists})


QUICK = Settings(
    clients=(1, 4),
    seconds=0.5,
    repeats=1,
    size=128,
    width=8,
    blocks=1,
    images=4,
    heavy=8,
    lines=(1, 2),
    widths=(8,),
    minutes=0.02,
    departed=8,
    guard=1500,
    scale=0.02,
    fresh=False,
)
"""Shows in a minute and a half that every work runs and every answer is right, and nothing else."""
