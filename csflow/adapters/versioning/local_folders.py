"""List the folders that a data repository on this machine consists of, for whoever hands it to a container."""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass
from pathlib import Path

from csflow.adapters.versioning.checkout import local_repository, repository_path
from csflow.adapters.versioning.git import git
from csflow.adapters.versioning.tracked import dvc_folder
from csflow.config import DataConfig


@dataclass(frozen=True)
class RepositoryFolders:
    """Folders of this machine that a checkout needs.

    Attributes:
        read: Images, history and remotes.
        written: DVC's cache and working files: DVC keeps there what it fetches from a remote.
    """

    read: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()


def repository_folders(data: DataConfig) -> RepositoryFolders:
    """List a local data repository and what it refers to outside itself; DVC's cache is made if it is missing.

    Raises:
        DataError: If ``data.repo`` is not a repository on this machine.
    """
    top = local_repository(data)
    # A worktree keeps its history elsewhere, and so does a clone that borrows objects.
    history = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir", repository=top).strip())
    alternates = history / "objects" / "info" / "alternates"
    borrowed = [Path(text) for text in alternates.read_text().splitlines()] if alternates.is_file() else []
    dvc = dvc_folder(top, repository_path(data.path))
    outside = (history, *borrowed, *_configured_folders(dvc, "url"))
    read = [path for path in outside if path.is_dir() and not path.resolve().is_relative_to(top.resolve())]
    caches = _configured_folders(dvc, "dir") or [dvc / ".dvc" / "cache"]
    written = [path for path in (dvc / ".dvc" / "tmp", *caches) if path.is_dir() or os.access(path.parent, os.W_OK)]
    for path in written:
        path.mkdir(exist_ok=True)
    return RepositoryFolders((top, *read), tuple(written))


def _configured_folders(top: Path, key: str) -> list[Path]:
    """List the remotes (``url``) or the cache (``dir``) that DVC's configuration names as folders."""
    found: list[Path] = []
    for name in ("config", "config.local"):
        settings = configparser.ConfigParser(interpolation=None, strict=False)
        settings.read(top / ".dvc" / name)
        named = [settings[section].get(key, "").strip("\"'") for section in settings.sections()]
        found += [
            Path(os.path.normpath(top / ".dvc" / Path(text).expanduser()))
            for text in named
            if text and "://" not in text
        ]
    return found
