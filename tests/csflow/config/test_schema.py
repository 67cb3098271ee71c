"""The JSON schema of a line's YAML: current, true to what csflow reads, and every key explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from csflow.config import LineConfig, parse_line, presets
from csflow.config.schema import FILE, line_schema
from csflow.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
LINES = sorted((ROOT / "lines").glob("*.yaml"))
GOOD: dict[str, Any] = {"line": "bolts", "data": {"path": "data"}}


def valid(plain: object) -> bool:
    return bool(Draft202012Validator(line_schema()).is_valid(plain))


def accepted(plain: object) -> bool:
    try:
        parse_line(yaml.safe_dump(plain), source=ROOT / "lines" / "bolts.yaml")
    except ConfigError:
        return False
    return True


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for part in (
            field.annotation,
            *get_args(field.annotation),
            *(a for x in get_args(field.annotation) for a in get_args(x)),
        ):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part)


def test_the_file_is_current() -> None:
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(line_schema())), "write it again: make schema"
    Draft202012Validator.check_schema(line_schema())


@pytest.mark.parametrize("file", LINES, ids=lambda file: file.stem)
def test_every_line_is_valid_and_names_the_schema(file: Path) -> None:
    assert valid(yaml.safe_load(file.read_text()))
    first, *_ = file.read_text().splitlines()
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / name).resolve() == FILE


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid(name: str) -> None:
    assert valid(GOOD | presets()[name])
    assert valid(GOOD | {"preset": name})
    assert valid(GOOD | {"preset": [name]})


@pytest.mark.parametrize(
    "changed",
    [
        {"wdith": 3},
        {"flow": {"hiden": 64}},
        {"flow": {"hidden": "64"}},
        {"flow": {"hidden": 0}},
        {"features": {"downscale": "best"}},
        {"detector": "csflw"},
        {"calibration": "nope"},
        {"calibration": {"alpha": 1.0}},
        {"serving": {"canary": [{"percent": 10}]}},
        {"line": "Bolts"},
        {"preset": "paper"},
        {"data": None},
    ],
    ids=lambda changed: yaml.safe_dump(changed, default_flow_style=True).strip(),
)
def test_what_csflow_refuses_the_schema_refuses(changed: dict[str, Any]) -> None:
    assert valid(GOOD)
    assert accepted(GOOD)
    assert not valid(GOOD | changed)
    assert not accepted(GOOD | changed)


@pytest.mark.parametrize("missing", ["line", "data"])
def test_line_and_data_must_be_given(missing: str) -> None:
    assert not valid({key: value for key, value in GOOD.items() if key != missing})


def test_every_key_has_a_description() -> None:
    bare = [
        f"{section.__name__}.{name}"
        for section in set(sections(LineConfig))
        for name, field in section.model_fields.items()
        if len(field.description or "") < 15
    ]
    assert bare == []
    assert len(set(sections(LineConfig))) >= 17, "the walk found all sections"
