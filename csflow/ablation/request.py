"""Describe the request of an ablation and its variants: configurations of a line with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, ValidationError

from csflow.config import LineConfig, Positive, Section, parse_line_json
from csflow.config.document import Document
from csflow.config.explanation import nearest
from csflow.errors import ConfigError

GroupName = Literal[
    "scales", "blocks", "shots", "joint", "width", "standardization", "training", "score", "map", "backbone",
    "image-size", "detectors",
]  # fmt: skip
Keys: TypeAlias = dict[str, Any]
"""Values of a line's YAML by dotted name, such as ``flow.blocks``."""

GROUPS: tuple[GroupName, ...] = get_args(GroupName)


class Quoted(Section):
    """The figure that the paper reports for a variant.

    Attributes:
        auroc: Image AUROC as a fraction.
        data: The data set it was measured on, and the table that reports it.
    """

    auroc: float
    data: str


class Variant(Section):
    """One configuration to try.

    Attributes:
        group: The question that it helps to answer.
        name: What distinguishes it from the other variants of its group.
        line: The complete configuration including the seed; the images of this line judge the variant.
        joined: Further lines whose good images are fitted together with the line's own.
        quoted: The paper's figure, if it reports one.
    """

    group: GroupName
    name: str
    line: LineConfig
    joined: tuple[LineConfig, ...] = ()
    quoted: Quoted | None = None


class Request(Section):
    """The variants that a user asks for.

    Attributes:
        line: The line's own configuration.
        groups: Questions to answer.
        seeds: Seeds with each of which every variant is fitted.
        overrides: Keys set in every variant, for instance a reduced width; a group's own keys take precedence.
        shots: Numbers of images to compare in the group ``shots``.
        widths: Hidden widths to compare in the group ``width``.
        backbones: Backbones to compare in the group ``backbone`` with the line's own: ``NAME`` (weights from timm's
            hub) or ``NAME:WEIGHTS``.
        image_sizes: Sizes in pixels to compare in the group ``image-size`` with the line's own.
        joined: Further lines to fit together in the group ``joint``.
    """

    line: LineConfig
    groups: Annotated[tuple[GroupName, ...], Field(min_length=1)] = ("scales", "blocks")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    overrides: Keys = Field(default_factory=dict)
    shots: tuple[Positive, ...] = (16,)
    widths: tuple[Positive, ...] = (128, 256, 512, 1024)
    backbones: tuple[str, ...] = ()
    image_sizes: tuple[Positive, ...] = ()
    joined: tuple[LineConfig, ...] = ()


def parse_request(plain: Mapping[str, Any]) -> Request:
    """Check a request made on a command line.

    Args:
        plain: The fields of :class:`Request` as plain JSON values.

    Raises:
        ConfigError: If a field is wrong; the message says what is allowed.
    """
    try:
        return Request.model_validate_json(json.dumps(dict(plain)))
    except ValidationError as error:
        problems = dict.fromkeys(_wrong_option(problem) for problem in error.errors())
        raise ConfigError(f"The ablation cannot be planned: {' '.join(filter(None, problems))}") from error


_OPTIONS = {"groups": "--group", "widths": "--width", "backbones": "--backbone", "image_sizes": "--image-size"}


def _wrong_option(problem: Any) -> str:
    """Say what is wrong with the value of an option."""
    name, value = str(problem["loc"][0]), problem["input"]
    option = _OPTIONS.get(name, f"--{name}")
    if problem["type"] == "literal_error":
        return f"There is no group {value!r}.{nearest(str(value), GROUPS)} Groups: {', '.join(GROUPS)}."
    if problem["type"] == "too_short":  # values that are wrong count as missing, and are named themselves
        return f"{option} is empty. Give at least one value." if value == [] else ""
    expected = "a whole number" if problem["type"] == "int_type" else problem["msg"].removeprefix("Input should be ")
    return f"{option} {value!r}: expected {expected}."


def parse_overrides(texts: Sequence[str]) -> Keys:
    """Parse ``KEY=VALUE`` texts, with values written as in YAML.

    >>> parse_overrides(["flow.hidden=32", "training.learning_rate=1e-3", "calibration=none"])
    {'flow.hidden': 32, 'training.learning_rate': 0.001, 'calibration': 'none'}

    Raises:
        ConfigError: If a text has no ``=``, is not YAML, or names a key that must not be overridden.
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
    """Set some keys of a line and check the result like a line's YAML.

    Args:
        line: The line.
        keys: Values by dotted key.

    Returns:
        The changed line.

    Raises:
        ConfigError: If a key is unknown or a value is not allowed for it.
    """
    plain = line.model_dump(mode="json")
    for key, value in keys.items():
        *sections, last = key.split(".")
        parent = plain
        for section in sections:
            parent = parent.setdefault(section, {})
            if not isinstance(parent, dict):
                raise ConfigError(f"{key} cannot be set: {section} is {parent!r} here. Set {section} as a whole.")
        parent[last] = value
    return parse_line_json(json.dumps(plain), source=f"line {line.line} with {', '.join(keys) or 'nothing'} set")


def differences(line: LineConfig, base: LineConfig) -> Keys:
    """Return the keys in which a line differs from another; data, seed and serving are not compared.

    Args:
        line: The line.
        base: The other line.

    Returns:
        Values of ``line`` by dotted key.
    """
    before, after = _flat(base), _flat(line)
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _value(key: str, text: str) -> Any:
    document = Document(text, f"--set {key}")
    if document.duplicates:
        raise ConfigError("\n".join(document.duplicates))
    return document.value


def _flat(line: LineConfig) -> Keys:
    plain = line.model_dump(mode="json", exclude={"line": True, "description": True, "data": True, "serving": True,
                                                  "training": {"seed"}})  # fmt: skip
    flat: Keys = {}
    for key, value in plain.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
    return flat


_REFUSED = {"line": "an ablation belongs to one line; ablate the other line itself", "training.seed": "use --seeds"}
