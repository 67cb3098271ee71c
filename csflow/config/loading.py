"""Read a line's YAML file.

``lines/NAME.yaml`` is the only hand-edited configuration. A ``preset`` (or a list of them, later ones win) from
``csflow/config/presets/`` underlies the keys of the file.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from csflow.config.explanation import explain
from csflow.config.line import LineConfig
from csflow.config.presets import merged_over, presets
from csflow.errors import ConfigError
from csflow.system.project import find_project, no_project_message, project_folder


def lines_folder() -> Path:
    """Return the folder of the lines' YAML files: ``CSFLOW_LINES``, else ``lines`` in the project's folder.

    Outside of a project (see :mod:`csflow.system.project`) that is ``lines`` in the current folder.

    Raises:
        UsageError: If ``CSFLOW_PROJECT`` names a folder that is not a project.
    """
    named = os.environ.get("CSFLOW_LINES")
    return Path(named) if named else project_folder() / "lines"


def line_names() -> list[str]:
    """Return the names of the lines that have a YAML file."""
    return sorted(path.stem for path in lines_folder().glob("*.yaml"))


def load_line(name_or_path: str | Path) -> LineConfig:
    """Read one line, by name (``lines/NAME.yaml``) or by the path of its YAML file.

    Raises:
        ConfigError: If there is no such line (the nearest names are suggested) or its YAML is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = lines_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ConfigError(_unknown_line(str(name_or_path), path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. Expected YAML text in UTF-8.") from error
    return parse_line(text, source=path)


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


def _unknown_line(name: str, path: Path) -> str:
    missing = f"There is no line {name!r}: {path} does not exist."
    if not line_names() and not os.environ.get("CSFLOW_LINES") and find_project() is None:
        return f"{missing} {no_project_message()}"
    near = difflib.get_close_matches(Path(name).stem, line_names(), n=3, cutoff=0.4)
    known = ", ".join(line_names()) or "none"
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{missing}{hint} Known lines: {known}."
