"""What a ``.dvc`` file in a commit says: which folder, which md5, which files."""

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
    """The tracked folder that is ``path`` or holds it, as committed (not as it lies in the working copy).

    Raises:
        DataError: If no committed ``.dvc`` file covers ``path``, or it names no folder with an md5 digest.
    """
    seen = []
    for dvc_file in _dvc_files(repository, commit, path):
        text = git("show", f"{commit}:{dvc_file}", repository=repository)
        for out in _outs(text, f"{dvc_file} at {commit[:12]}"):
            folder = _place(dvc_file, out)
            if path == folder or path.startswith(f"{folder}/"):
                return TrackedFolder(folder, _directory_md5(out, dvc_file), dvc_file)
            seen.append(folder)
    tracked = f"tracked there: {', '.join(seen)}" if seen else "no .dvc file lies on its way"
    raise DataError(
        f"DVC does not track {path!r} in {repository} at {commit[:12]} ({tracked}). "
        "Correct data.path in the line's YAML, or track the folder with 'dvc add' and commit its .dvc file."
    )


def _dvc_files(repository: Path, commit: str, path: str) -> list[str]:
    """The ``.dvc`` files in all folders from that of ``path`` up to the top, nearest first."""
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


def _place(dvc_file: str, out: Mapping[str, str]) -> str:
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
    """DVC's digest of a folder with these files, ``….dir``: it proves a listing to be the committed one."""
    entries = [{"md5": listing[path], "relpath": path} for path in sorted(listing)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def differing_files(folder: Path, listing: Listing) -> list[str]:
    """Names of the files in ``folder`` that are missing, too many, or whose md5 is another."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    common = sorted(present & set(listing))
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: md5_file(folder / name), common)
        changed = {name for name, md5 in zip(common, sums, strict=True) if md5 != listing[name]}
    return sorted(changed | (present ^ set(listing)))


def md5_file(path: Path) -> str:
    """The digest DVC names files by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def quiet_dvc(repository: Path, site_cache: Path, doing: str) -> Iterator[None]:
    """Call DVC in ``repository`` without analytics or log output, with its bookkeeping in ``site_cache``.

    Raises:
        DataError: For whatever goes wrong in DVC or the store behind it, with ``doing`` in front.
    """
    try:
        with _environment(DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=str(site_cache)), _silent_loggers():
            yield
    except DataError:
        raise
    # DVC passes on the errors of every store it knows (botocore, fsspec, SSH, …): no narrower class holds them.
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
    """DVC logs to the standard output, which belongs to the command; what matters comes as an error."""
    import dvc  # noqa: F401  # importing it sets the levels of its loggers

    with log_level(logging.CRITICAL, "dvc", "dvc_data", "dvc_objects"):
        yield
