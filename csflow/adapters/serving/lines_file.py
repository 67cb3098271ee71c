"""Read which lines to serve from a file, so that lines come and go without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from csflow.adapters.serving.served import ServedDetector
from csflow.config.document import Document
from csflow.errors import UsageError

WATCH_SECONDS = 2.0
"""The file is looked at this often."""

_EXPECTED = "Expected LINE: {directory: FOLDER, version: VERSION}, where version may be left out."


def read_lines(path: Path) -> dict[str, ServedDetector]:
    """Read a JSON or YAML file of lines: ``{LINE: {directory: …, version: …}}``.

    Folders are relative to the file. Links are followed, so that one that is turned to another detector is a change.

    Raises:
        UsageError: If it cannot be read, or something is missing, unknown or of the wrong kind.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read the lines in {path}: {error.strerror}. Check the path of --lines.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8. {_EXPECTED}") from error
    document = Document(text, path)
    if document.duplicates:
        raise UsageError(f"{path}: {document.duplicates[0]} Remove one of them.")
    if not isinstance(document.value, dict) or not document.value:
        raise UsageError(f"{path} names no lines. {_EXPECTED}")
    return {name: _served(path, name, entry) for name, entry in document.value.items()}


def _served(path: Path, name: str, entry: object) -> ServedDetector:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{path}: {name} is no mapping. {_EXPECTED}")
    if unknown := sorted(entry.keys() - {"directory", "version"}):
        raise UsageError(f"{path}: {name} has an unknown key {unknown[0]!r}. {_EXPECTED}")
    directory, version = entry.get("directory"), entry.get("version", "")
    if not isinstance(directory, str) or not directory:
        raise UsageError(f"{path}: {name} has no directory. {_EXPECTED}")
    if isinstance(version, bool) or not isinstance(version, str | int):
        raise UsageError(f"{path}: the version of {name} is no text and no whole number. {_EXPECTED}")
    return ServedDetector((path.parent / directory).resolve(), str(version))
