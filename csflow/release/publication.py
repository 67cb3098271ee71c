"""Laying a registered detector down where an endpoint reads it: under its digest, never under an alias."""

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
        uri: Where an endpoint elsewhere reads it, ending in ``LINE/DIGEST/``.
    """

    folder: Path
    uri: str

    @property
    def digest(self) -> str:
        """Digest of the detector directory."""
        return self.folder.name


def publish(services: Services, version: Version) -> Published:
    """Lay a version's detector down as :func:`lay_down` does, where every endpoint can read it.

    With ``CSFLOW_STORE`` it is uploaded there too, file by file checked, and that is its ``uri``. Published again,
    nothing is sent; other content under that digest is never replaced.

    Raises:
        RegistryError: If the version has no digest, or its files have another one.
        StorageError: If the store refuses, does not answer, or holds other content there.
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
    """Lay a version's detector down as ``detectors/LINE/DIGEST/`` on this machine, checked.

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
