"""Tell which folders of this machine a line's data repository needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csflow.config import LineConfig

if TYPE_CHECKING:
    from csflow.adapters.versioning.local_folders import RepositoryFolders


def has_remote_repository(line: LineConfig) -> bool:
    """Tell if a line's data repository has to be cloned.

    Returns:
        True if ``data.repo`` is a URL, False if it is a folder.
    """
    from csflow.adapters.versioning.checkout import is_remote

    return is_remote(line.data.repo)


def data_folders(line: LineConfig) -> RepositoryFolders:
    """List the folders that a checkout of the line's data needs.

    Returns:
        The folders; none if the repository is cloned from a URL.

    Raises:
        DataError: If the repository is a folder that does not exist, or is not a repository.
    """
    from csflow.adapters.versioning.local_folders import RepositoryFolders, repository_folders

    return RepositoryFolders() if has_remote_repository(line) else repository_folders(line.data)
