"""Find a detector by the name that a person gives it: a line, a line's version, or a directory."""

from __future__ import annotations

from pathlib import Path

from csflow.config import load_line
from csflow.errors import UsageError
from csflow.release.publication import lay_down
from csflow.runs.services import Services


def locate_detector(name: str, services: Services) -> Path:
    """Find the local detector directory for ``LINE`` (its champion), ``LINE@VERSION`` or a directory.

    Raises:
        UsageError: If the name is neither a directory nor a line.
        RegistryError: If the line has no champion or no such version.
        LostFilesError: If no copy of its files is intact.
    """
    directory = Path(name)
    if directory.is_dir():
        return directory
    if "/" in name:
        raise UsageError(f"{name} does not exist. Give LINE, LINE@VERSION or a detector directory.")

    line, _, wanted = name.partition("@")
    if wanted and wanted != "champion" and not wanted.isdecimal():
        raise UsageError(f"{name}: expected a version number or 'champion' after '@', got {wanted!r}.")
    version = int(wanted) if wanted.isdecimal() else "champion"
    model = load_line(line).line
    return lay_down(services, services.registry.find_version(model, version))
