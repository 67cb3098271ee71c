"""Publish a registered detector where an endpoint reads it: under its digest, never under an alias."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.detector_files import is_intact, place
from csflow.errors import CsflowError, LostFilesError, RegistryError, StorageError
from csflow.runs.services import Services
from csflow.system.files import write_atomic
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version
    from csflow.adapters.storage import Store

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

    The files come from the registry. If they are lost there, they come from what was published in the store.

    Returns:
        The detector directory.

    Raises:
        LostFilesError: If no copy of the files is intact; the message says how to go on.
        RegistryError: If the version has no digest, or its files have another one.
    """
    try:
        return _intact_copy(services, version)
    except LostFilesError as error:
        raise LostFilesError(f"{error} {ways_out(services, version)}") from error


def require_champion_files(services: Services, versions: Sequence[Version]) -> None:
    """Refuse to train if the gate could not compare the result, because the champion's files are lost.

    If no version is intact, training another one is the way out; then only a line of progress says so.

    Args:
        services: The outside systems.
        versions: All versions of a line.

    Raises:
        LostFilesError: If the champion's files are lost and another version's are intact.
    """
    champion = next((version for version in versions if version.is_champion), None)
    if champion is None:
        return
    try:
        _intact_copy(services, champion)
    except LostFilesError as error:
        message = f"{error} {ways_out(services, champion)}"
        if any(_is_available(services, version, champion) for version in versions):
            raise LostFilesError(message) from error
        say(message)


def ways_out(services: Services, lost: Version) -> str:
    """Return the commands that help if the files of a version are lost, in words."""
    intact = [version for version in services.registry.versions(lost.line) if _is_available(services, version, lost)]
    if not intact:
        return (
            f"No other version of {lost.line} is intact either. Train another one with csflow run {lost.line} --force; "
            f"if the gate then cannot compare it, make it champion with csflow promote {lost.line}@VERSION."
        )
    numbers = ", ".join(str(version.version) for version in intact)
    best = max(intact, key=lambda version: (version.was_champion, version.champion_order))
    return (
        f"Or serve a version whose files are intact ({numbers}), without comparing it: "
        f"csflow promote {lost.line}@{best.version}"
    )


def _is_available(services: Services, version: Version, lost: Version) -> bool:
    if version.version == lost.version or version.tags.get("detector_digest") == lost.tags.get("detector_digest"):
        return False
    try:
        _intact_copy(services, version)
    except CsflowError:
        return False
    return True


def _intact_copy(services: Services, version: Version) -> Path:
    expected = version.tags.get("detector_digest")
    parent = services.workspace.detectors / version.line
    try:
        folder = services.registry.download_detector(version.line, version.version, parent)
    except LostFilesError:
        if services.store is None or not expected:
            raise
        if not _fetch_published(services.store, version.line, expected, parent):
            raise
        folder = parent / expected
    if folder.name != expected:
        raise RegistryError(
            f"Version {version.version} of line {version.line!r} is registered with the detector digest {expected!r}, "
            f"its files have {folder.name!r}. Do not serve it; train again with --force."
        )
    return folder


def _fetch_published(store: Store, line: str, digest: str, parent: Path) -> bool:
    """Download a published detector from the store; return False if the store has no intact one."""
    key = f"{DETECTORS}/{line}/{digest}"
    with tempfile.TemporaryDirectory(dir=parent, prefix=".download.") as scratch:
        try:
            for name in store.index_of(key) or {}:
                write_atomic(Path(scratch) / name, store.read(f"{key}/{name}") or b"")
        except StorageError:
            return False
        if not is_intact(Path(scratch), digest):
            return False
        place(Path(scratch), parent / digest)
    return True
