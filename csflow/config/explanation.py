"""Explain in words what is wrong with a line's YAML."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from csflow.config.document import Document
from csflow.config.judging import CalibrationConfig
from csflow.config.line import LineConfig

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "keys with values below it",
}
"""What was expected, by the type of pydantic's error."""


def explain(error: ValidationError, source: str | Path, document: Document | None = None) -> list[str]:
    """Return one sentence for each problem: where, what was found, what is allowed.

    Args:
        error: What pydantic raised for a :class:`csflow.config.line.LineConfig`.
        source: The file, for the reader.
        document: The text of the file, which knows the line of every key; ``None`` for JSON.
    """
    sentences = []
    for problem in error.errors():
        # A union's member is part of the location by the name of its class; nobody wrote that into the YAML.
        path = tuple(str(part) for part in problem["loc"] if part != CalibrationConfig.__name__)
        if path[:1] == ("calibration",) and path[1:2] == ("literal['none']",):
            continue  # the other member of the union says the same, and more
        sentence = _sentence(problem, path, document.written(path) if document else None)
        sentences.append(f"{source}{_line(path, document)}: {sentence}")
    return list(dict.fromkeys(sentences))


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


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the question ``Did you mean …?`` for a mistyped word, after a blank; empty if nothing is near.

    >>> nearest("widht", ["blocks", "width"]), nearest("x", ["width"])
    (" Did you mean 'width'?", '')
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _line(path: tuple[str, ...], document: Document | None) -> str:
    """Name the line of the nearest key that is written in the file; a preset's keys are not."""
    for end in range(len(path), 0, -1):
        number = document.line_of(path[:end]) if document else None
        if number is not None:
            return f", line {number}"
    return ""


def _sentence(problem: typing.Any, path: tuple[str, ...], written: str | None) -> str:
    place, kind = ".".join(path), problem["type"]
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing" and path[-1].isdecimal():
        return f"{'.'.join(path[:-1])}: expected more values than {problem['input']!r}."
    if kind == "missing":
        return f"key {place!r} is missing."
    found = written or repr(problem["input"])
    if kind == "value_error":
        reason = str(problem["ctx"]["error"])
        # A validator of a section names the keys that it is about; the whole section would hide them.
        named = not path or isinstance(problem["input"], dict) or found in reason
        return f"{place or 'the line'}: {reason}{'' if named else f', got {found}'}."
    if kind == "string_pattern_mismatch":
        return f"{place}: {found} does not fit. {_about(path)}"
    expected = _expected(problem, path)
    if problem["input"] is None:
        remedy = "" if _field(path).is_required() else "; leave the key out for the default"
        return f"{place} is empty. Expected {expected}{remedy}."
    words: list[str] = []
    if kind == "literal_error":
        words = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    elif path == ("calibration",):
        words = ["none"]
    return f"{place or 'the line'}: expected {expected}, got {found}.{nearest(str(problem['input']).lower(), words)}"


def _expected(problem: typing.Any, path: tuple[str, ...]) -> str:
    kind, value = problem["type"], problem["input"]
    if path == ("calibration",):
        return "keys such as 'alpha', or none"
    if kind == "model_type":
        return f"keys below it ({', '.join(allowed_keys(path))})"
    if kind == "tuple_type":
        return (
            "a list in brackets" if isinstance(value, dict) else f"a list, such as [{'' if value is None else value}]"
        )
    if kind in ("too_long", "too_short"):
        bound = problem["ctx"].get("max_length", problem["ctx"].get("min_length"))
        return f"at {'most' if kind == 'too_long' else 'least'} {bound} values"
    if kind == "literal_error":
        return f"one of {problem['ctx']['expected']}"
    return _EXPECTED.get(kind) or str(problem["msg"]).removeprefix("Input should be ")


def _unknown(path: tuple[str, ...]) -> str:
    allowed = allowed_keys(path[:-1])
    hint = nearest(path[-1], allowed)
    if not hint:
        sections = [key for key in allowed_keys(()) if key != "preset" and _has_keys(key)]
        homes = [f"{section}.{path[-1]}" for section in sections if path[-1] in allowed_keys([section])]
        hint = f" Did you mean {' or '.join(map(repr, homes))}?" if homes else ""
    return f"unknown key {'.'.join(path)!r}.{hint} Allowed here: {', '.join(allowed)}."


def _has_keys(name: str) -> bool:
    return next(_sections_in(LineConfig.model_fields[name].annotation), None) is not None


def _about(path: tuple[str, ...]) -> str:
    """Return a field's description with an example, for values whose form is hard to put otherwise."""
    field = _field(path)
    shown = [field.get_default(), *(field.examples or ())]
    examples = ", ".join(str(value) for value in shown if isinstance(value, str))
    return f"{field.description} For example: {examples}."


def _field(path: tuple[str, ...]) -> FieldInfo:
    """Return the field that a path leads to, or that holds the list or the mapping to whose item it leads."""
    fields = LineConfig.model_fields
    for key in path:
        if key in fields:
            field = fields[key]
            section = next(_sections_in(field.annotation), None)
            fields = section.model_fields if section else {}
    return field


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field's type mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)
