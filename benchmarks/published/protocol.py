"""The rows of a table: one YAML file a table, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from csflow.config import DataConfig, LineConfig, Section, merged_over, parse_line_json
from csflow.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "protocols"


class RowSpec(Section):
    """One row that is measured.

    Attributes:
        method: Its name in the table.
        paper: The paper's figure, as a fraction; None if the paper has no such row.
        set: Keys of the line's YAML, over those of the protocol.
        seeds: Seeds to train from; the protocol's by default.
        joint: True if one model is fitted to all classes (table 1).
    """

    method: str
    joint: bool = False
    paper: float | None = None
    set: dict[str, Any] = Field(default={})
    seeds: tuple[int, ...] | None = None

    @property
    def fits_few(self) -> bool:
        """Return True if the row fits a few images only."""
        return "shots" in self.set.get("roles", {})


class QuotedRow(Section):
    """A row of the paper that is not measured here."""

    method: str
    paper: float


class Protocol(Section):
    """One table.

    Attributes:
        table: Its number in the paper.
        title: Its title.
        paper_data: The paper's data and features.
        note: Differences from the paper.
        base: Keys of the line's YAML, common to all rows.
        seeds: Seeds to train from.
        rows: Rows that are measured.
        quoted: Rows that are only quoted.
        compare: Method whose scores are compared with every other one's, image by image.
        quick: Keys over all others for a run that shows that everything works, and says nothing about quality.
    """

    table: int
    title: str
    paper_data: str
    note: str = ""
    base: dict[str, Any]
    seeds: tuple[int, ...]
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    quoted: tuple[QuotedRow, ...] = ()
    compare: str | None = None
    quick: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _methods_once(self) -> Self:
        names = [row.method for row in self.rows] + [row.method for row in self.quoted]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each method needs a name of its own, got twice: {', '.join(twice)}")
        return self

    def line(self, row: RowSpec, seed: int, *, name: str, data: DataConfig, quick: bool = False) -> LineConfig:
        """Return the complete configuration of a row.

        Raises:
            ConfigError: If a key is wrong.
        """
        keys = merged_over(self.base, row.set)
        if quick:
            keys = merged_over(keys, self.quick)
        keys = merged_over(keys, {"line": name, "data": data.model_dump(), "training": {"seed": seed}})
        return parse_line_json(json.dumps(keys), source=f"row {row.method!r} of table {self.table}")


def load_protocol(path: Path) -> Protocol:
    """Read a table's YAML.

    Raises:
        ConfigError: If there is none or a key is wrong.
    """
    try:
        return Protocol.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ConfigError(f"There is no protocol {path.name}. Known: {known}.") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: {error}") from error
