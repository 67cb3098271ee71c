"""Check out the images of a line at a revision into a folder of their own, completely or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.versioning.git import git
from csflow.adapters.versioning.remote import REMEDY
from csflow.adapters.versioning.tracked import (
    Listing,
    TrackedFolder,
    differing_files,
    listing_digest,
    md5_file,
    quiet_dvc,
    tracked_folder,
)
from csflow.config import DataConfig
from csflow.errors import DamagedFileError, DataError
from csflow.system.files import new_directory, sha256_json
from csflow.system.progress import track
from csflow.system.seals import put_aside, read_sealed_json, write_sealed_json
from csflow.system.wording import shorten

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

SITE_CACHE = ".dvc-site"
LISTING = "listing.json"
"""File of a checkout with the md5 of every image."""

_TRANSFERS = 8  # files fetched at a time: the network and the remote are waited for, not the processor


@dataclass(frozen=True)
class CheckedOut:
    """A line's images as they are in a revision.

    Attributes:
        root: Folder of the images.
        git_rev: Full id of the commit.
        data_md5: DVC's digest of the tracked folder that is or contains the line's, ``….dir``.
    """

    root: Path
    git_rev: str
    data_md5: str


def checkout(data: DataConfig, target_parent: Path) -> CheckedOut:
    """Check out the files of ``data.path`` at ``data.rev`` below ``target_parent`` and check every one.

    Only committed files count: uncommitted changes in the repository are ignored. An earlier checkout is checked again
    and used, without calling DVC; a damaged one is put aside.

    Args:
        data: Repository (folder or URL), revision, path.
        target_parent: Folder that gets one subfolder per content.

    Raises:
        DataError: If the repository, revision or path does not exist, files are neither in the cache nor in the
            remote, or one differs from its recorded md5. Nothing is left behind then.
    """
    target_parent = target_parent.resolve()
    path = repository_path(data.path)
    repository, commit = locate(data, target_parent)
    out = tracked_folder(repository, commit, path)
    inside = path.removeprefix(out.folder).strip("/")
    target = target_parent / "-".join([out.md5.removesuffix(".dir"), *filter(None, inside.split("/"))])
    if damage := _damage(target):
        put_aside(target, damage)
        with new_directory(target) as temporary:
            _fetch(repository, commit, out, inside, temporary, target_parent / SITE_CACHE)
    with suppress(OSError):
        os.utime(target)  # pruning removes checkouts that have not been used for long
    return CheckedOut(target / "images", commit, out.md5)


def repository_path(path: str) -> str:
    """Return ``data.path`` in the form that git and DVC use.

    Raises:
        DataError: If it is empty, absolute or leads out of the repository.
    """
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not parts or path.startswith("/") or ".." in parts:
        raise DataError(f"data.path {path!r} is not a folder inside the repository. Name it like 'data/my-line'.")
    return "/".join(parts)


def locate(data: DataConfig, clones: Path) -> tuple[Path, str]:
    """Return the repository as a local folder, cloned if needed, and the full commit id of the revision.

    Raises:
        DataError: If either does not exist.
    """
    if is_remote(data.repo):
        return _clone(data, clones)
    repository = local_repository(data)
    return repository, _commit(repository, data.rev, data.rev)


def is_remote(repo: str) -> bool:
    """Return True if ``data.repo`` is a URL that has to be cloned; ``file://`` is a local folder."""
    return ("://" in repo and not repo.startswith("file://")) or bool(re.match(r"[\w.-]+@[\w.-]+:", repo))


def local_repository(data: DataConfig) -> Path:
    """Return the top folder of a repository on this machine.

    Raises:
        DataError: If there is no such repository.
    """
    folder = Path(data.repo.removeprefix("file://"))
    if not folder.is_dir():
        raise DataError(f"The data repository {folder} does not exist. Correct data.repo in the line's YAML.")
    top = Path(git("rev-parse", "--show-toplevel", repository=folder).strip())
    if top.resolve() != folder.resolve():
        raise DataError(f"{folder} is not a repository itself but inside of {top}. Set data.repo to that.")
    return top


def _commit(repository: Path, rev: str, name: str) -> str:
    try:
        commit = f"{rev}^{{commit}}"
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", commit, repository=repository).strip()
    except DataError as error:
        shallow = git("rev-parse", "--is-shallow-repository", repository=repository).strip() == "true"
        remedy = "The clone is shallow: run 'git fetch --unshallow' in it" if shallow else "See 'git log' and 'git tag'"
        raise DataError(f"{repository} has no revision {name!r}. {remedy}, or correct data.rev.") from error


def _clone(data: DataConfig, parent: Path) -> tuple[Path, str]:
    """Clone and check out the revision, because a DVC remote may be inside of the repository."""
    clone = parent / f".repository-{sha256_json(data.repo)[:16]}"
    if not (clone / ".git").is_dir():
        with new_directory(clone) as temporary:
            git("clone", "--quiet", "--no-checkout", data.repo, str(temporary))
    commit = _known_commit(clone, data.rev)
    if commit is None:
        git("fetch", "--quiet", "--tags", "--force", "origin", repository=clone)
        git("remote", "set-head", "origin", "--auto", repository=clone)
        branch = f"origin/{data.rev}"
        commit = _commit(clone, branch if _exists(clone, branch) else data.rev, data.rev)
    git("checkout", "--quiet", "--force", "--detach", commit, repository=clone)
    return clone, commit


def _known_commit(clone: Path, rev: str) -> str | None:
    """Return a full commit id that the clone already has, which needs no network."""
    return rev if re.fullmatch(r"[0-9a-f]{40}", rev) and _exists(clone, rev) else None


def _exists(clone: Path, rev: str) -> bool:
    try:
        _commit(clone, rev, rev)
    except DataError:
        return False
    return True


def _damage(target: Path) -> str:
    """Say in a sentence why an earlier checkout cannot be used; an empty text if it has exactly its files."""
    try:
        value = read_sealed_json(target / LISTING, required=False)
    except DamagedFileError as error:
        return str(error)
    # Before 0.6 the file was the listing alone, without a seal.
    listing: Listing = value["files"] if isinstance(value.get("files"), dict) else value
    differing = differing_files(target / "images", listing)
    return f"{target} is damaged: {shorten(differing)} changed, missing or surplus." if differing else ""


def _fetch(repository: Path, commit: str, out: TrackedFolder, inside: str, target: Path, site_cache: Path) -> None:
    """Fill ``target`` with ``images/`` and the listing."""
    doing = f"Reading {out.folder} at {commit[:12]} from {repository}"
    with quiet_dvc(repository / out.dvc_root, site_cache, doing), committed_files(repository, commit, out) as system:
        entries = committed_entries(system, out)
        prefix = f"{inside}/" if inside else ""
        wanted = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
        if not wanted:
            folders = sorted({name.split("/")[0] for name in entries})
            raise DataError(f"{out.folder} at {commit[:12]} has no folder {inside!r}, only {shorten(folders)}.")
        _fetch_files(system, f"{out.in_dvc}/{prefix}", wanted, target / "images")
    write_sealed_json(target / LISTING, {"files": {name: entry.md5 for name, entry in wanted.items()}})


@dataclass(frozen=True)
class CommittedFile:
    """A file of a tracked folder.

    Attributes:
        md5: Its digest.
        info: DVC's information about it, which saves another search.
    """

    md5: str
    info: dict[str, object]


@contextmanager
def committed_files(repository: Path, commit: str, out: TrackedFolder) -> Iterator[DVCFileSystem]:
    """Open the DVC repository of a tracked folder as it is in a commit, with the remote that is configured now.

    Args:
        repository: Top folder of the git repository.
        commit: Full id of the commit.
        out: The folder, which says in which folder the DVC repository is.
    """
    from dvc.api import DVCFileSystem
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo

    if not out.dvc_root:
        yield DVCFileSystem(str(repository), rev=commit)
        return
    # DVC reads a commit from the top. Below it, relative addresses of remotes would start in the wrong folder.
    with Repo(str(repository / out.dvc_root)) as present:
        name = present.config["core"].get("remote")
        config = {"remote": {name: dict(present.config["remote"][name])}} if name else {}
        tree = GitFileSystem(scm=present.scm, rev=commit)
        with Repo(f"/{out.dvc_root}", fs=tree, scm=present.scm, config=config) as committed:
            yield DVCFileSystem(repo=committed)


def committed_entries(system: DVCFileSystem, out: TrackedFolder) -> dict[str, CommittedFile]:
    """List the files of a tracked folder by their path in it, verified by the committed digest.

    Raises:
        DataError: If the cache or the remote has another listing under that digest.
    """
    found = system.find(out.in_dvc, detail=True, dvc_only=True)
    entries = {
        name.lstrip("/").removeprefix(f"{out.in_dvc}/"): CommittedFile(info["dvc_info"]["md5"], info)
        for name, info in found.items()
    }
    if listing_digest({name: entry.md5 for name, entry in entries.items()}) != out.md5:
        raise DataError(f"The list of files {out.md5} is damaged in the cache or the remote. {REMEDY}")
    return entries


def _fetch_files(system: DVCFileSystem, prefix: str, entries: dict[str, CommittedFile], target: Path) -> None:
    """Fetch and check file by file, so that each missing or damaged one can be named."""

    def fetch(name: str) -> str:
        file = target / name
        try:
            # A copy, because DVC removes the information from the mapping.
            system.get_file(prefix + name, str(file), info=dict(entries[name].info))
        except FileNotFoundError:
            return f"{name} (missing)"
        return "" if md5_file(file) == entries[name].md5 else f"{name} (damaged)"

    with ThreadPoolExecutor(_TRANSFERS) as pool:
        results = list(track(pool.map(fetch, entries), total=len(entries), label="fetch images"))
    if bad := [f"{prefix}{result}" for result in results if result]:
        raise DataError(f"{len(bad)} of {len(entries)} files cannot be used: {shorten(bad)}. {REMEDY}")
