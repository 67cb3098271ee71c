"""Find the YAML files of lines, and read them: ``lines/NAME.yaml`` is the only hand-edited configuration."""

from __future__ import annotations

import codecs
import difflib
import os
from pathlib import Path

from csflow.config.line import LineConfig
from csflow.config.parsing import parse_line
from csflow.errors import ConfigError
from csflow.system.project import find_project, no_project_message, project_folder


def lines_folder() -> Path:
    """Return the folder of the lines' YAML files: ``CSFLOW_LINES``, else ``lines`` in the project's folder.

    Outside of a project (see :mod:`csflow.system.project`) that is ``lines`` in the current folder.

    Raises:
        UsageError: If ``CSFLOW_PROJECT`` names a folder that is not a project.
    """
    named = os.environ.get("CSFLOW_LINES")
    return Path(named).expanduser() if named else project_folder() / "lines"


def line_names() -> list[str]:
    """Return the names of the lines that have a YAML file."""
    return sorted(path.stem for path in lines_folder().glob("*.yaml"))


def load_line(name_or_path: str | Path) -> LineConfig:
    """Read one line, by name (``lines/NAME.yaml``) or by the path of its YAML file.

    Raises:
        ConfigError: If there is no such line (the nearest names are suggested), its YAML is wrong, or its ``line`` is
            not the name of the file, as in a copied file.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = lines_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ConfigError(_unknown_line(str(name_or_path), path))
    line = parse_line(_text(path), source=path)
    if line.line != path.stem:
        raise ConfigError(
            f"{path} says 'line: {line.line}', but a line has the name of its file. Set 'line: {path.stem}', or rename "
            f"the file to {line.line}{path.suffix} if it is about that line."
        )
    return line


def _text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        ConfigError: If it cannot be read or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. Check its permissions.") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"Cannot read {path}: it is UTF-16. Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"Cannot read {path}: byte 0x{data[error.start]:02x} in line {number} is not UTF-8. Expected YAML text: "
            "save it as UTF-8."
        ) from error


def _unknown_line(name: str, path: Path) -> str:
    missing = f"There is no line {name!r}: {path} does not exist."
    if not line_names() and not os.environ.get("CSFLOW_LINES") and find_project() is None:
        return f"{missing} {no_project_message()}"
    near = difflib.get_close_matches(Path(name).stem, line_names(), n=3, cutoff=0.4)
    known = ", ".join(line_names()) or "none"
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{missing}{hint} Known lines: {known}."
