"""Explain in words what is wrong with a line's YAML."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError

from csflow.config.judging import CalibrationConfig
from csflow.config.line import LineConfig


def explain(error: ValidationError, source: str) -> list[str]:
    """Return one sentence for each problem: where, what was found, what is allowed.

    Args:
        error: What pydantic raised for a :class:`csflow.config.line.LineConfig`.
        source: The file, for the reader.
    """
    return [sentence for problem in error.errors() if (sentence := _sentence(problem, source))]


def allowed_keys(path: Sequence[str]) -> list[str]:
    """Return the keys that a section of the YAML may have.

    Args:
        path: Keys from the top to the section; the items of a list are numbers. Empty for the top.
    """
    section: type[BaseModel] = LineConfig
    for key in path:
        if not key.isdecimal():
            section = next(_sections_in(section.model_fields[key].annotation))
    names = sorted(section.model_fields)
    return names if path else [*names, "preset"]


def _sentence(problem: typing.Any, source: str) -> str:
    # A union's member is part of the location by the name of its class; nobody wrote that into the YAML.
    path = [str(part) for part in problem["loc"] if part != CalibrationConfig.__name__]
    place = ".".join(path)
    if problem["type"] == "extra_forbidden":
        allowed = allowed_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{source}: unknown key {place!r}.{hint} Allowed here: {', '.join(allowed)}."
    if problem["type"] == "missing":
        return f"{source}: key {place!r} is missing."
    if problem["type"] == "literal_error" and place.startswith("calibration.literal"):
        return ""
    return f"{source}: {place or 'the line'}: {problem['msg']}, got {problem['input']!r}."


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field's type mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)
