"""Read every key of a line's YAML from the models that check it: type, bounds, default, meaning, example."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from csflow.config import LineConfig

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
_EXAMPLES = Path(__file__).with_name("examples.yaml")


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        section: Dotted name of the section it is in; empty at the top.
        name: Its name in the section.
        field: What the model says of it.
        inner: The section below this key, if it opens one; a list of sections if ``listed``.
        listed: The sections below it are items of a list.
    """

    section: str
    name: str
    field: FieldInfo
    inner: type[BaseModel] | None = None
    listed: bool = False

    @property
    def path(self) -> str:
        """Dotted name from the top."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def required(self) -> bool:
        """The key has no default."""
        return self.field.is_required()

    @property
    def default(self) -> Any:
        """The default as it would be written in YAML."""
        value = self.field.get_default(call_default_factory=True)
        return None if value is PydanticUndefined else plain(value)

    @property
    def meaning(self) -> str:
        """What the key changes; empty if the model says nothing."""
        return self.field.description or ""

    @property
    def allowed(self) -> str:
        """Type and bounds in words."""
        return _describe(self.field.annotation, self.field.metadata)

    @property
    def example(self) -> Any:
        """A value: that of the model, else one of ``examples.yaml``, else the default."""
        if self.field.examples:
            return plain(self.field.examples[0])
        return examples().get(self.path, self.default)


@cache
def examples() -> dict[str, Any]:
    """Return the values that show keys whose default says nothing, by dotted name."""
    found: dict[str, Any] = yaml.safe_load(_EXAMPLES.read_text(encoding="utf-8"))
    return found


def keys(model: type[BaseModel] = LineConfig, section: str = "") -> Iterator[Key]:
    """Yield the keys of a section, those of a section below a key right after it."""
    for name, field in model.model_fields.items():
        inner = next(_models(field.annotation), None)
        key = Key(section, name, field, inner, inner is not None and _is_list(field.annotation))
        yield key
        if inner is not None:
            yield from keys(inner, key.path)


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML know it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return json.loads(json.dumps(value, default=str))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list) or any(_is_list(part) for part in get_args(annotation))


def _describe(annotation: Any, metadata: list[Any]) -> str:
    """Words for a type with its bounds."""
    origin, parts = get_origin(annotation), get_args(annotation)
    bounds = _bounds(metadata)
    if origin is Annotated:
        first = parts[1]
        return _describe(parts[0], [*(first.metadata if isinstance(first, FieldInfo) else parts[1:]), *metadata])
    if origin is Literal:
        return "one of " + ", ".join(f"`{part}`" if part else "nothing (`''`)" for part in parts)
    if origin in (Union, types.UnionType):
        return ", or ".join(_describe(part, []) for part in parts) + bounds
    if origin in (tuple, list):
        if origin is tuple and len(parts) > 1 and parts[1] is not Ellipsis:
            return f"list of {len(parts)}, each: {_describe(parts[0], [])}{bounds}"
        return f"list, each item: {_describe(parts[0], [])}{bounds}"
    if origin is dict:
        return f"section of your own keys, each value: {_describe(parts[1], [])}{bounds}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds


def _bounds(metadata: list[Any]) -> str:
    """Words for bounds, such as ``, at least 1``."""
    found = []
    for each in metadata:
        found += [words.format(f"{getattr(each, name):g}") for name, words in _BOUNDS.items() if hasattr(each, name)]
        if getattr(each, "pattern", None):
            found.append(f"matching `{each.pattern}`")
    return "".join(f", {each}" for each in found)
