"""Describe an environment variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["csflow", "library", "internal"]
"""Read by csflow, read by a library, or set by csflow or a launcher for its own processes."""


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: Its name.
        meaning: What it changes, in one or two sentences.
        default: Behaviour without it, in words or as a value in backticks.
        example: A value.
        used_by: Commands, steps or parts that read it.
        group: Who sets it and who reads it.
    """

    name: str
    meaning: str
    default: str
    example: str
    used_by: str
    group: Group = "csflow"
