"""Parse a line's YAML or JSON text.

A ``preset`` (or a list of them, later ones win) from ``csflow/config/presets/`` underlies the keys of the text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from csflow.config.explanation import explain
from csflow.config.line import LineConfig
from csflow.config.presets import merged_over, presets
from csflow.errors import ConfigError


def parse_line(text: str, *, source: Path) -> LineConfig:
    """Validate a line's YAML text; a relative ``data.repo`` starts from the folder of ``source``.

    Raises:
        ConfigError: Naming each wrong key, where it is and what is allowed there.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} holds {type(raw).__name__}, expected keys such as 'line:' and 'data:'.")
    merged = _with_presets(raw, source)
    line = parse_line_json(json.dumps(merged, default=str), source=source)
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
        raise ConfigError("\n".join(explain(error, str(source)))) from error


def _with_presets(raw: dict[str, Any], source: Path) -> dict[str, Any]:
    wanted = raw.get("preset", [])
    names = [wanted] if isinstance(wanted, str) else wanted
    known = presets()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: preset: expected a name or a list of names, got {wanted!r}: {', '.join(known)}.")
    merged: dict[str, Any] = {}
    for name in names:
        if name not in known:
            raise ConfigError(f"{source}: no preset {name!r}. Known presets: {', '.join(known)}.")
        merged = merged_over(merged, known[name])
    return merged_over(merged, {key: value for key, value in raw.items() if key != "preset"})
