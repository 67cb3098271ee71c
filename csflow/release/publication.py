"""Publish a registered detector where an endpoint reads it: under its digest, never under an alias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import RegistryError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version

DETECTORS = "detectors"
"""Folder of published detectors in a store: ``detectors/LINE/DIGEST/``."""


@dataclass(frozen=True)
class Published:
    """A detector that can be served.

    Attributes:
        folder: Its directory on this machine; the folder's name is the digest.
        uri: Where an endpoint on another machine reads it; ends in ``LINE/DIGEST/``.
    """

    folder: Path
    uri: str

    @property
    def digest(self) -> str:
        """Return the digest of the detector directory."""
        return self.folder.name


def publish(services: Services, version: Version) -> Published:
    """Store a version's detector where every endpoint can read it.

    The detector is stored on this machine by :func:`lay_down`. If ``CSFLOW_STORE`` is set, it is also uploaded there,
    every file is checked, and ``uri`` is its address in the store. If it is published again, nothing is sent; other
    content under that digest is never replaced.

    Raises:
        RegistryError: If the version has no digest, or its files have another one.
        StorageError: If the store refuses, does not answer, or has other content there.
        ConfigError: If ``CSFLOW_STORE`` names no store.
    """
    store = services.store
    folder = lay_down(services, version)
    if store is None:
        return Published(folder, f"{folder.absolute().as_uri()}/")
    key = f"{DETECTORS}/{version.line}/{folder.name}"
    store.upload_directory(folder, key)
    return Published(folder, f"{store.uri(key)}/")


def lay_down(services: Services, version: Version) -> Path:
    """Store a version's detector as ``detectors/LINE/DIGEST/`` on this machine and check its digest.

    Returns:
        The detector directory.

    Raises:
        RegistryError: If the version has no digest, or its files have another one.
    """
    expected = version.tags.get("detector_digest")
    folder = services.registry.download_detector(
        version.line, version.version, services.workspace.detectors / version.line
    )
    if folder.name != expected:
        raise RegistryError(
            f"Version {version.version} of line {version.line!r} is registered with the detector digest {expected!r}, "
            f"its files have {folder.name!r}. Do not serve it; train again with --force."
        )
    return folder
