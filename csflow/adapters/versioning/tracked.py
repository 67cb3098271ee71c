"""Read the ``.dvc`` files of a commit: which folders are tracked, with which md5 and which files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

import yaml

from csflow.adapters.versioning.git import INHERITED, git
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
        dvc_root: Posix path of the folder that has ``.dvc/``; empty for the top, and another one after
            ``dvc init --subdir``.
    """

    folder: str
    md5: str
    dvc_file: str
    dvc_root: str = ""

    @property
    def in_dvc(self) -> str:
        """Return the path of the folder in the DVC repository."""
        return self.folder.removeprefix(f"{self.dvc_root}/") if self.dvc_root else self.folder


def tracked_folder(repository: Path, commit: str, path: str) -> TrackedFolder:
    """Find the tracked folder that is or contains ``path``, as committed (not as in the working copy).

    A ``.dvc`` file that cannot be read matters only if no other one covers ``path``.

    Raises:
        DataError: If no committed ``.dvc`` file covers ``path``, it names no folder with an md5 digest, or there is no
            DVC repository around it.
    """
    seen, broken = [], []
    for dvc_file in _dvc_files(repository, commit, path):
        try:
            outs = _outs(git("show", f"{commit}:{dvc_file}", repository=repository), f"{dvc_file} at {commit[:12]}")
        except DataError as error:
            broken.append(str(error))
            continue
        for out in outs:
            folder = _tracked_path(dvc_file, out)
            if path == folder or path.startswith(f"{folder}/"):
                md5 = _directory_md5(out, dvc_file)
                return TrackedFolder(folder, md5, dvc_file, _dvc_root(repository, commit, dvc_file))
            seen.append(folder)
    if broken:
        raise DataError(" ".join(broken))
    tracked = f"tracked there: {', '.join(seen)}" if seen else "there is no .dvc file in its parent folders"
    raise DataError(
        f"DVC does not track {path!r} in {repository} at {commit[:12]} ({tracked}). "
        "Correct data.path in the line's YAML, or track the folder with 'dvc add' and commit its .dvc file."
    )


def _dvc_files(repository: Path, commit: str, path: str) -> list[str]:
    """List the ``.dvc`` files in all folders from that of ``path`` up to the top, nearest first."""
    found: list[str] = []
    for folder in PurePosixPath(path).parents:
        entries = _entries(repository, commit, folder)
        found += [name for name, kind in entries.items() if kind == "blob" and name.endswith(".dvc")]
    return found


def _dvc_root(repository: Path, commit: str, dvc_file: str) -> str:
    """Find the folder with ``.dvc/`` that a ``.dvc`` file belongs to: the nearest one.

    Raises:
        DataError: If there is none.
    """
    for folder in PurePosixPath(dvc_file).parents:
        if _entries(repository, commit, folder).get(str(folder / ".dvc")) == "tree":
            return "" if str(folder) == "." else str(folder)
    raise DataError(
        f"{repository} has no folder .dvc at {commit[:12]}, so {dvc_file} belongs to no DVC repository. Run "
        "'dvc init', and commit .dvc/config."
    )


def dvc_folder(repository: Path, path: str) -> Path:
    """Return the folder of the working copy that has ``.dvc/`` for a path in it; the top if there is none."""
    folders = (repository / folder for folder in PurePosixPath(path).parents)
    return next((folder for folder in folders if (folder / ".dvc").is_dir()), repository)


def _entries(repository: Path, commit: str, folder: PurePosixPath) -> dict[str, str]:
    """List a committed folder: the kind (``blob``, ``tree``) of each entry by its path; empty if there is none."""
    prefix = "./" if str(folder) == "." else f"{folder}/"
    listing = git("ls-tree", "-z", commit, prefix, repository=repository)
    rows = (row.partition("\t") for row in listing.split("\0") if row)
    return {name: about.split()[1] for about, _, name in rows}


def _outs(text: str, source: str) -> list[Mapping[str, object]]:
    """Return the outputs that a ``.dvc`` file names.

    Raises:
        DataError: If it is not one.
    """
    restore = "Restore it from an earlier commit, or run 'dvc add' again and commit."
    try:
        content = yaml.safe_load(text)
    # PyYAML passes on what a date such as 2024-99-99 raises.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        reason = "it has the marks of a merge conflict" if "<<<<<<<" in text else f"it is not YAML{where}"
        raise DataError(f"{source} is not a .dvc file: {reason}. {restore}") from error
    outs = content.get("outs") if isinstance(content, dict) else None
    if not isinstance(outs, list):
        raise DataError(f"{source} is not a .dvc file: it has no list 'outs'. {restore}")
    working = content.get("wdir", ".")
    if not isinstance(working, str):
        raise DataError(f"{source} is not a .dvc file: its 'wdir' is {working!r}, expected a folder. {restore}")
    for out in outs:
        if not isinstance(out, dict) or not isinstance(out.get("path"), str) or not out["path"]:
            raise DataError(f"{source} is not a .dvc file: {out!r} in 'outs' has no text 'path'. {restore}")
    return [{**out, "wdir": working} for out in outs]


def _tracked_path(dvc_file: str, out: Mapping[str, object]) -> str:
    return normpath(str(PurePosixPath(dvc_file).parent / str(out["wdir"]) / str(out["path"])))


def _directory_md5(out: Mapping[str, object], dvc_file: str) -> str:
    md5 = out.get("md5")
    if isinstance(md5, str) and re.fullmatch(r"[0-9a-f]{32}\.dir", md5) and out.get("hash") == "md5":
        return md5
    if "files" in out or out.get("cache") is False:
        kind = "the versions of a cloud store" if "files" in out else "a folder that DVC does not keep (cache: false)"
        raise DataError(
            f"{dvc_file} names {out['path']!r} by {kind}, expected a folder kept under its md5. Track the images "
            "with a plain 'dvc add' in a repository whose remote is not version_aware."
        )
    raise DataError(
        f"{dvc_file} names {out['path']!r} with md5 {md5 or 'missing'!r}, expected a folder recorded by DVC 3. "
        "Track a folder; for a file of DVC 2 run 'dvc cache migrate --dvc-files' and commit."
    )


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
        repository: Folder of the DVC repository, which has ``.dvc/``.
        site_cache: Folder for DVC's bookkeeping.
        doing: What the block does, for messages.

    Raises:
        DataError: If anything fails in DVC or in the store behind it; the message begins with ``doing``.
    """
    try:
        wanted: dict[str, str | None] = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(site_cache)}
        # The git libraries of DVC heed a hook's variables too.
        with _environment({**dict.fromkeys(INHERITED), **wanted}), _silent_loggers():
            yield
    except DataError:
        raise
    # DVC passes on the errors of every store it supports (botocore, fsspec, SSH, …): they have no narrower base class.
    except Exception as error:
        raise DataError(f"{doing} failed: {explain_failure(error, repository)}") from error


@contextmanager
def _environment(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables inside the block; ``None`` removes one."""
    before = {key: os.environ.get(key) for key in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextmanager
def _silent_loggers() -> Iterator[None]:
    """Silence DVC, which logs to the command's standard output; what matters is raised as an error."""
    import dvc  # noqa: F401  # importing it sets the levels of its loggers

    with log_level(logging.CRITICAL, "dvc", "dvc_data", "dvc_objects"):
        yield
