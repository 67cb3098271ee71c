"""Laying a registered detector down where an endpoint reads it: under its digest, never under an alias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import RegistryError
from csflow.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.registry import Version


@dataclass(frozen=True)
class Published:
    """A detector that can be served.

    Attributes:
        folder: Its directory on this machine; the folder's name is the digest.
        uri: Where an endpoint elsewhere reads it, ending in ``LINE/DIGEST/``.
    """

    folder: Path
    uri: str

    @property
    def digest(self) -> str:
        """Digest of the detector directory."""
        return self.folder.name


def publish(workspace: Workspace, version: Version) -> Published:
    """Lay a version's detector down as ``detectors/LINE/DIGEST/``, checked against the registered digest.

    Raises:
        RegistryError: If the version has no digest, or its files have another one.
    """
    from csflow.adapters import registry

    expected = version.tags.get("detector_digest")
    folder = registry.download_detector(workspace, version.line, version.version, workspace.detectors / version.line)
    if folder.name != expected:
        raise RegistryError(
            f"Version {version.version} of line {version.line!r} is registered with the detector digest {expected!r}, "
            f"its files have {folder.name!r}. Do not serve it; train again with --force."
        )
    return Published(folder, f"{folder.absolute().as_uri()}/")
