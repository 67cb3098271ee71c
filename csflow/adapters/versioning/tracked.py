"""Read the ``.dvc`` files of a commit: which folders are tracked, with which md5 and which files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

import yaml

from csflow.adapters.versioning.git import git
from csflow.adapters.versioning.remote import explain_failure
from csflow.errors import DataError
from csflow.system.cores import cores
from csflow.system.loggers import log_level

Listing = dict[str, str]
"""md5 of each file by its posix path, relative to the folder in question."""


@dataclass(frozen=True)
class TrackedFolder:
    """A folder that DVC tracks as a whole.

    Attributes:
        folder: Posix path in the repository.
        md5: DVC's digest of the folder, ending in ``.dir``.
        dvc_file: Posix path of the ``.dvc`` file.
    """

    folder: str
    md5: str
    dvc_file: str


def tracked_folder(repository: Path, commit: str, path: str) -> TrackedFolder:
    """Find the tracked folder that is or contains ``path``, as committed (not as in the working copy).

    Raises:
        DataError: If no committed ``.dvc`` file covers ``path``, or it names no folder with an md5 digest.
    """
    seen = []
    for dvc_file in _dvc_files(repository, commit, path):
        text = git("show", f"{commit}:{dvc_file}", repository=repository)
        for out in _outs(text, f"{dvc_file} at {commit[:12]}"):
            folder = _tracked_path(dvc_file, out)
            if path == folder or path.startswith(f"{folder}/"):
                return TrackedFolder(folder, _directory_md5(out, dvc_file), dvc_file)
            seen.append(folder)
    tracked = f"tracked there: {', '.join(seen)}" if seen else "there is no .dvc file in its parent folders"
    raise DataError(
        f"DVC does not track {path!r} in {repository} at {commit[:12]} ({tracked}). "
        "Correct data.path in the line's YAML, or track the folder with 'dvc add' and commit its .dvc file."
    )


def _dvc_files(repository: Path, commit: str, path: str) -> list[str]:
    """List the ``.dvc`` files in all folders from that of ``path`` up to the top, nearest first."""
    found = []
    for folder in PurePosixPath(path).parents:
        prefix = "" if str(folder) == "." else f"{folder}/"
        names = git("ls-tree", "-z", "--name-only", commit, prefix or "./", repository=repository).split("\0")
        found += [name for name in names if name.endswith(".dvc") and name != ".dvc"]
    return found


def _outs(text: str, source: str) -> list[Mapping[str, str]]:
    content = yaml.safe_load(text)
    outs = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(outs, list):
        raise DataError(f"{source} is not a .dvc file: it has no 'outs'. Restore it from an earlier commit.")
    return [{"wdir": content.get("wdir", "."), **out} for out in outs]


def _tracked_path(dvc_file: str, out: Mapping[str, str]) -> str:
    return normpath(str(PurePosixPath(dvc_file).parent / out["wdir"] / out["path"]))


def _directory_md5(out: Mapping[str, str], dvc_file: str) -> str:
    md5 = out.get("md5", "")
    if not md5.endswith(".dir") or out.get("hash") != "md5":
        raise DataError(
            f"{dvc_file} names {out['path']!r} with md5 {md5 or 'missing'!r}, expected a folder recorded by DVC 3. "
            "Track a folder; for a file of DVC 2 run 'dvc cache migrate --dvc-files' and commit."
        )
    return md5


def listing_digest(listing: Listing) -> str:
    """Return DVC's digest of a folder with these files, ``….dir``, which verifies a listing."""
    entries = [{"md5": listing[path], "relpath": path} for path in sorted(listing)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def differing_files(folder: Path, listing: Listing) -> list[str]:
    """Return the names of the files in ``folder`` that are missing, surplus, or have another md5."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    common = sorted(present & set(listing))
    with ThreadPoolExecutor(cores()) as pool:
        sums = pool.map(lambda name: md5_file(folder / name), common)
        changed = {name for name, md5 in zip(common, sums, strict=True) if md5 != listing[name]}
    return sorted(changed | (present ^ set(listing)))


def md5_file(path: Path) -> str:
    """Return the md5 of a file, by which DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def quiet_dvc(repository: Path, site_cache: Path, doing: str) -> Iterator[None]:
    """Let DVC run in ``repository`` inside the block, without analytics and log output.

    Args:
        repository: Top folder of the repository.
        site_cache: Folder for DVC's bookkeeping.
        doing: What the block does, for messages.

    Raises:
        DataError: If anything fails in DVC or in the store behind it; the message begins with ``doing``.
    """
    try:
        with _environment(DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=str(site_cache)), _silent_loggers():
            yield
    except DataError:
        raise
    # DVC passes on the errors of every store it supports (botocore, fsspec, SSH, …): they have no narrower base class.
    except Exception as error:
        raise DataError(f"{doing} failed: {explain_failure(error, repository)}") from error


@contextmanager
def _environment(**wanted: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def _silent_loggers() -> Iterator[None]:
    """Silence DVC, which logs to the command's standard output; what matters is raised as an error."""
    import dvc  # noqa: F401  # importing it sets the levels of its loggers

    with log_level(logging.CRITICAL, "dvc", "dvc_data", "dvc_objects"):
        yield
