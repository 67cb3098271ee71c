"""Import images into a data repository, and record, push and commit them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from csflow.adapters import versioning
from csflow.config import DataConfig
from csflow.errors import UsageError

IMAGES = "data"
"""Folder of the images in a data repository that csflow created, tracked by ``data.dvc``."""

Importer = Callable[[Path], list[str]]
"""A function that fills a folder and names the subfolders it made, or ``''`` if it made the folder itself."""


def import_tracked(bring: Importer, repository: Path, remote: str | None, message: str) -> tuple[list[str], str]:
    """Import images into ``repository``, and record, push and commit them.

    Args:
        bring: Does the import; called with the folder of the images.
        repository: Data repository; created if the folder is missing or empty.
        remote: Where images are pushed to; only for a repository that is created now.
        message: Message of the commit.

    Returns:
        The lines' paths inside the repository and the full id of the commit.

    Raises:
        UsageError: If a remote is given for a repository that exists.
        DataError: If the import, DVC or git fails. The repository is then as it was before.
    """
    repository = repository.resolve()
    existed = versioning.is_data_repository(repository)
    if existed and remote:
        raise UsageError(f"{repository} has its remote already. Leave out --remote, or use 'dvc remote modify' there.")
    images = repository / IMAGES
    if not existed:
        versioning.create_data_repository(repository, remote)
    data = DataConfig(repo=str(repository), path=IMAGES)
    with versioning.locked_for(data):
        if (repository / f"{IMAGES}.dvc").exists():
            versioning.open_working_copy(data)
        made = [] if existed else [repository]
        try:
            names = bring(images)
            made += [images / name for name in names]
            recorded = versioning.add_and_push(repository, IMAGES, message)
        except BaseException:
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return [f"{IMAGES}/{name}".rstrip("/") for name in names], recorded.commit
