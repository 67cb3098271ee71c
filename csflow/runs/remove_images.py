"""Remove images from a line's data repository, as a new revision; older revisions keep them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from csflow.adapters.versioning import ImageChange, journal
from csflow.config import LineConfig
from csflow.data.manifest import Manifest
from csflow.errors import DataError
from csflow.runs.change_images import Changed, carry_out, working_copy_of
from csflow.system.files import sha256_file
from csflow.system.wording import shorten

_HASH = re.compile(r"[0-9a-f]{8,64}")


def remove_images(line: LineConfig, names: Sequence[str]) -> Changed:
    """Remove images and their masks from a line, check the rest with the data gate, and record, push and commit it.

    Args:
        line: The line.
        names: Each is the path of an image in the line's folder, at least 8 digits of its SHA-256, or any file or
            folder on this machine: images of equal content are removed.

    Raises:
        DataError: If a name stands for no image of the line or for several, the data gate refuses the result, or the
            repository cannot be written. In each case nothing has changed.
    """
    with working_copy_of(line) as (working_copy, manifest):
        chosen = _chosen(manifest, names)
        rows = manifest.frame[manifest.frame["path"].isin(chosen)]
        files = [*rows["path"], *(mask for mask in rows["mask"] if mask)]
        inside = working_copy.root.relative_to(working_copy.repository)
        change = ImageChange.of(
            working_copy.repository,
            working_copy.tracked,
            command="csflow data remove",
            message=f"{line.line}: {len(rows)} images removed",
            added=[],
            removed=[(inside / file).as_posix() for file in files],
        )
        return carry_out(line, working_copy, change, lambda: journal.set_aside(working_copy.repository, change))


def _chosen(manifest: Manifest, names: Sequence[str]) -> set[str]:
    """Return the paths of the images that the names stand for."""
    known = {str(path): str(sha) for path, sha in zip(manifest.frame["path"], manifest.frame["sha256"], strict=True)}
    chosen: set[str] = set()
    unknown = []
    for name in names:
        found = _matching(known, name)
        chosen |= found
        if not found:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(names)} names stand for no image of the line: {shorten(unknown)}. Give paths such "
            f"as {next(iter(known))}, the first digits of a SHA-256, or files of equal content. Nothing was removed."
        )
    return chosen


def _matching(known: dict[str, str], name: str) -> set[str]:
    inside = PurePosixPath(name).as_posix()
    if inside in known:
        return {inside}
    if _HASH.fullmatch(name):
        found = {path for path, sha in known.items() if sha.startswith(name)}
        if len({known[path] for path in found}) > 1:
            raise DataError(
                f"{name} is the start of the SHA-256 of several images: {shorten(sorted(found))}. Give more."
            )
        if found:
            return found
    outside = Path(name)
    files = [outside] if outside.is_file() else [file for file in outside.rglob("*") if file.is_file()]
    hashes = {sha256_file(file) for file in files}
    return {path for path, sha in known.items() if sha in hashes}
