"""Parse a line's YAML or JSON text.

A ``preset`` (or a list of them, later ones win) from ``csflow/config/presets/`` underlies the keys of the text.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from csflow.config.document import Document
from csflow.config.explanation import explain
from csflow.config.line import LineConfig
from csflow.config.presets import merged_over, presets
from csflow.errors import ConfigError


def parse_line(text: str, *, source: Path) -> LineConfig:
    """Validate a line's YAML text; a relative ``data.repo`` starts from the folder of ``source``.

    Raises:
        ConfigError: Naming each wrong key, in which line it is and what is allowed there.
    """
    document = Document(text, source)
    raw = document.value
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} {_kind_of(raw)}, expected keys such as 'line: {source.stem}' and 'data:'.")
    merged = _with_presets(raw, source)
    try:
        line = _validated(merged, document)
    except ValidationError as error:
        raise ConfigError("\n".join([*document.duplicates, *explain(error, source, document)])) from error
    if document.duplicates:
        raise ConfigError("\n".join(document.duplicates))
    repo = line.data.repo
    if "://" in repo or repo.startswith("git@") or Path(repo).is_absolute():
        return line
    absolute = str((source.resolve().parent / repo).resolve())
    return line.model_copy(update={"data": line.data.model_copy(update={"repo": absolute})})


def parse_line_json(text: str, *, source: str | Path = "line configuration") -> LineConfig:
    """Validate a line already merged with its presets, as one step hands it to the next.

    Raises:
        ConfigError: Naming each wrong key, where it is and what is allowed there.
    """
    try:
        return LineConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, source))) from error


def _validated(merged: dict[str, Any], document: Document) -> LineConfig:
    """Validate the keys; where a text is expected, ``1234567`` or ``no`` is the text that was written."""
    try:
        return LineConfig.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        paths = [tuple(map(str, problem["loc"])) for problem in error.errors() if problem["type"] == "string_type"]
        texts = {path: text for path in paths if (text := document.written(path)) is not None}
        if not texts:
            raise
    for path, text in texts.items():
        parent: Any = merged
        for key in path[:-1]:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = text
    return LineConfig.model_validate_json(json.dumps(merged))


def _kind_of(value: object) -> str:
    if value is None:
        return "has no keys: it is empty, or all of it is a comment"
    return "is a list at its top" if isinstance(value, list) else f"has no keys, only {value!r}"


def _with_presets(raw: dict[str, Any], source: Path) -> dict[str, Any]:
    wanted = raw.get("preset", [])
    names = [wanted] if isinstance(wanted, str) else wanted
    known = presets()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: preset: expected a name or a list of names, got {wanted!r}: {', '.join(known)}.")
    merged: dict[str, Any] = {}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{source}: no preset {name!r}.{hint} Known presets: {', '.join(known)}.")
        merged = merged_over(merged, known[name])
    return merged_over(merged, {key: value for key, value in raw.items() if key != "preset"})
