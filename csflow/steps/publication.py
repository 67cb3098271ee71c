"""Laying a registered detector down where an endpoint reads it: under its digest, never under an alias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import RegistryError
from csflow.progress import say
from csflow.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.registry import Version


DETECTORS = "detectors"
"""Where detectors lie in the shared store, as in the workspace: ``detectors/LINE/DIGEST/``."""


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

    With a shared store (``CSFLOW_STORE``) it is laid down there as well; what is there already is not sent again.

    Raises:
        RegistryError: If the version has no digest, or its files have another one.
        StorageError: If the shared store refuses or does not answer.
    """
    from csflow.adapters import registry

    expected = version.tags.get("detector_digest")
    folder = registry.download_detector(workspace, version.line, version.version, workspace.detectors / version.line)
    if folder.name != expected:
        raise RegistryError(
            f"Version {version.version} of line {version.line!r} is registered with the detector digest {expected!r}, "
            f"its files have {folder.name!r}. Do not serve it; train again with --force."
        )
    return Published(folder, _shared(folder, version.line) or f"{folder.absolute().as_uri()}/")


def _shared(folder: Path, line: str) -> str:
    """Publish a folder in the shared store; its address there, empty without a store."""
    from csflow.adapters.storage import Store

    store = Store.from_environment()
    if store is None:
        return ""
    key = f"{DETECTORS}/{line}/{folder.name}"
    if store.upload_directory(folder, key):
        say(f"promote: published {store.uri}/{key}/")
    return f"{store.uri}/{key}/"
