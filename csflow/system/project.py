"""Find the project that a command works in: the folder that holds the lines and the pipelines."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from csflow.errors import UsageError

PROJECT = "CSFLOW_PROJECT"
"""Environment variable that names the project's folder."""


def is_project(folder: Path) -> bool:
    """Return True if a folder is a csflow project: it has ``lines/`` and the package ``pipelines/``."""
    return (folder / "lines").is_dir() and (folder / "pipelines" / "__init__.py").is_file()


def find_project() -> Path | None:
    """Return the project's folder, or ``None`` if there is none.

    ``CSFLOW_PROJECT`` names it (``csflow --project DIR`` sets that); otherwise it is the nearest project upwards from
    the current folder.

    Raises:
        UsageError: If ``CSFLOW_PROJECT`` names a folder that is not a project.
    """
    named = os.environ.get(PROJECT)
    if named:
        folder = Path(named).expanduser().absolute()
        if not is_project(folder):
            raise UsageError(
                f"{folder} is not a csflow project: expected a folder with lines/ and pipelines/. Correct --project "
                f"or {PROJECT}, or unset it and run the command inside the project."
            )
        return folder
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if is_project(folder)), None)


def require_project() -> Path:
    """Return the project's folder.

    Raises:
        UsageError: If there is none, or Python cannot import from it.
    """
    folder = find_project()
    if folder is None:
        raise UsageError(no_project_message())
    if os.pathsep in str(folder):
        raise UsageError(
            f"The project {folder} has {os.pathsep!r} in its path, which separates folders in PYTHONPATH, so that "
            "Python cannot import from it. Rename the folder."
        )
    return folder


def no_project_message() -> str:
    """Return the message for a command that finds no project: what was looked for, where, and what to do."""
    return (
        f"No csflow project found: neither {Path.cwd()} nor a folder above it has lines/ and pipelines/. Run the "
        f"command inside the project, or name it: csflow --project DIR …, or {PROJECT}=DIR."
    )


def project_folder() -> Path:
    """Return the project's folder, or the current folder if there is no project."""
    return find_project() or Path.cwd()


def project_module(name: str) -> ModuleType:
    """Import a module of the project, such as ``pipelines.local``: those are not part of the installed package.

    Raises:
        UsageError: If there is no project, or what its pipelines need is not installed.
    """
    folder = str(require_project())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("pipelines", "components", "csflow"):
            raise
        raise UsageError(
            f"{missing} is not installed, but the pipelines of {folder} need it: pip install 'csflow[pipelines]'."
        ) from error
