"""Tell if a line's images are still those that its champion was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.errors import RegistryError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version


def unchanged_since_champion(line: LineConfig, services: Services) -> str:
    """Compare the line's images at its revision with those of its champion; configuration and code do not count.

    If DVC's digest of the tracked folder is the same, nothing in it changed. If it differs, the change may belong to
    another line, so this line's images are fetched and their own digest is compared.

    Returns:
        A sentence saying that the images are the same; empty if they differ or there is no champion.

    Raises:
        DataError: If the revision or its images are not available.
        RegistryError: If the registry cannot be read.
    """
    from csflow.runs.checkout import materialise

    champion = services.registry.find_champion(line.line)
    if champion is None:
        return ""
    commit, md5 = _committed(line, services)
    if md5 != champion.tags.get("data_md5") or line.data.path != _path_of(champion, services):
        manifest, _ = materialise(line, services.workspace)
        if manifest.digest != champion.tags.get("data_digest"):
            return ""
    return f"the images of {line.line} at {commit[:12]} are those of its champion, version {champion.version}"


def _committed(line: LineConfig, services: Services) -> tuple[str, str]:
    """Return the commit of the line's revision, and DVC's digest of the tracked folder in it."""
    from csflow.adapters.versioning.checkout import locate, repository_path
    from csflow.adapters.versioning.tracked import tracked_folder

    clones = services.workspace.data / line.line
    repository, commit = locate(line.data, clones)
    return commit, tracked_folder(repository, commit, repository_path(line.data.path)).md5


def _path_of(champion: Version, services: Services) -> str | None:
    """Return the folder that the champion's run read; ``None`` if the run is gone."""
    try:
        return services.tracker.read_run(champion.run_id).params.get("data.path")
    except RegistryError:
        return None
