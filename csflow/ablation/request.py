"""Ablations: a line's configuration with one thing changed at a time; what is asked for and what is tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import Field, ValidationError

from csflow.config import LineConfig, Positive, Section, parse_line_json
from csflow.errors import ConfigError

Group = Literal[
    "scales", "blocks", "shots", "joint", "width", "standardization", "training", "score", "map", "backbone",
    "image-size", "detectors",
]  # fmt: skip
Keys: TypeAlias = dict[str, Any]
"""Values of a line's YAML by dotted name, such as ``flow.blocks``."""

GROUPS: tuple[Group, ...] = get_args(Group)


class Quoted(Section):
    """What the paper reports for a variant.

    Attributes:
        auroc: Image AUROC as a fraction.
        data: The data set it was measured on, and where it stands.
    """

    auroc: float
    data: str


class Variant(Section):
    """One configuration to try.

    Attributes:
        group: The question it belongs to.
        name: What is told apart in the group.
        line: The complete configuration, its seed included; names the line whose images judge.
        joined: Further lines whose good images are fitted along.
        quoted: The paper's figure, if it has one.
    """

    group: Group
    name: str
    line: LineConfig
    joined: tuple[LineConfig, ...] = ()
    quoted: Quoted | None = None


class Request(Section):
    """What an ablation is asked to try.

    Attributes:
        line: The line's own configuration.
        groups: Questions to answer.
        seeds: Every variant is fitted with each of them.
        overrides: Keys set in every variant, for instance a reduced width; a group's own key wins.
        shots: Numbers of images of the group ``shots``.
        widths: Of the group ``width``.
        backbones: Of the group ``backbone``, beside the line's own: ``NAME`` (weights from timm's hub) or
            ``NAME:WEIGHTS``.
        image_sizes: Of the group ``image-size``, beside the line's own.
        joined: Further lines of the group ``joint``.
    """

    line: LineConfig
    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = ("scales", "blocks")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    overrides: Keys = Field(default_factory=dict)
    shots: tuple[Positive, ...] = (16,)
    widths: tuple[Positive, ...] = (128, 256, 512, 1024)
    backbones: tuple[str, ...] = ()
    image_sizes: tuple[Positive, ...] = ()
    joined: tuple[LineConfig, ...] = ()


def parse_request(plain: Mapping[str, Any]) -> Request:
    """Check what was asked for on a command line.

    Raises:
        ConfigError: Naming what is wrong and what is allowed.
    """
    try:
        return Request.model_validate_json(json.dumps(dict(plain)))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()]
        raise ConfigError(f"The ablation cannot be planned: {'; '.join(problems)}.") from error


def parse_overrides(texts: Sequence[str]) -> Keys:
    """Read ``KEY=VALUE`` texts, values as in YAML.

    >>> parse_overrides(["flow.hidden=32", "training.learning_rate=1e-3", "calibration=none"])
    {'flow.hidden': 32, 'training.learning_rate': 0.001, 'calibration': 'none'}

    Raises:
        ConfigError: If a text has no ``=``, is not YAML, or names a key that is not for overriding.
    """
    overrides: Keys = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {text!r}: expected KEY=VALUE, for instance flow.hidden=32.")
        if key in _REFUSED:
            raise ConfigError(f"--set {key}: {_REFUSED[key]}.")
        overrides[key] = _value(key, value)
    return overrides


def changed(line: LineConfig, keys: Mapping[str, Any]) -> LineConfig:
    """A line with some keys set, checked like a line's YAML.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed there.
    """
    plain = line.model_dump(mode="json")
    for key, value in keys.items():
        *sections, last = key.split(".")
        place = plain
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key} cannot be set: {section} is {place!r} here. Set {section} as a whole.")
        place[last] = value
    return parse_line_json(json.dumps(plain), source=f"line {line.line} with {', '.join(keys) or 'nothing'} set")


def differences(line: LineConfig, base: LineConfig) -> Keys:
    """The keys that make one configuration of the other; which data, which seed and where to serve do not count."""
    before, after = _flat(base), _flat(line)
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _value(key: str, text: str) -> Any:
    try:
        return json.loads(text)  # YAML 1.1 takes 1e-3 for a text
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {text!r} is not a YAML value: {error}") from error


def _flat(line: LineConfig) -> Keys:
    plain = line.model_dump(mode="json", exclude={"line": True, "description": True, "data": True, "serving": True,
                                                  "training": {"seed"}})  # fmt: skip
    flat: Keys = {}
    for key, value in plain.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


_REFUSED = {"line": "another line is another ablation", "training.seed": "give --seeds"}
