"""Create data repositories, record a folder's new state in them, and push it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csflow.adapters.versioning.checkout import (
    committed_entries,
    committed_files,
    is_remote,
    local_repository,
    locate,
    repository_path,
)
from csflow.adapters.versioning.git import commit, git
from csflow.adapters.versioning.journal import interrupted, locked
from csflow.adapters.versioning.remote import refuse_secrets
from csflow.adapters.versioning.tracked import TrackedFolder, differing_files, dvc_folder, quiet_dvc, tracked_folder
from csflow.config import DataConfig
from csflow.errors import DataError
from csflow.system.files import write_atomic
from csflow.system.wording import shorten


@dataclass(frozen=True)
class WorkingCopy:
    """A line's images in the repository itself, where they can be changed.

    Attributes:
        repository: Top folder of the repository.
        tracked: Posix path of the folder that DVC tracks; it is or contains the line's.
        root: Folder of the line's images.
    """

    repository: Path
    tracked: str
    root: Path


@dataclass(frozen=True)
class Recorded:
    """A folder's new state: DVC's digest and the full id of the commit that names it."""

    md5: str
    commit: str


def is_data_repository(folder: Path) -> bool:
    """Return True if ``folder`` is the top folder of a git repository with DVC."""
    return (folder / ".git").exists() and (folder / ".dvc").is_dir()


def create_data_repository(folder: Path, remote: str | None = None) -> None:
    """Make ``folder`` a git repository with DVC and a remote for the images, and commit that.

    Without ``remote`` the remote is the sibling folder ``NAME-remote``, named by a relative path: it survives
    ``git clean`` and the removal of the working copy, both folders can be moved together, and clones in the same
    parent folder find it. A remote given as a folder is named by its absolute path, so that every clone on this
    machine finds it.

    Args:
        folder: Missing or empty folder.
        remote: Folder, or a URL such as ``s3://bucket/prefix``.

    Raises:
        DataError: If ``folder`` is not empty, ``remote`` contains credentials (it is committed), or git or DVC fail;
            a folder that was created is removed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is neither empty nor a data repository. Choose another folder.")
    folder = folder.resolve()
    url = _remote_url(folder, remote)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        git("init", "--quiet", "--initial-branch=main", repository=folder)
        with quiet_dvc(folder, site_cache(folder), f"Making {folder} a DVC repository"):
            from dvc.repo import Repo

            Repo.init(str(folder)).close()
        settings = f"[core]\n    analytics = false\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n"
        write_atomic(folder / ".dvc" / "config", f"{settings}    verify = true\n")
        names = (".dvc/config", ".dvc/.gitignore", ".dvcignore")
        commit(folder, [folder / name for name in names], "Data repository")
    except BaseException:
        shutil.rmtree(folder)
        raise


def _remote_url(folder: Path, remote: str | None) -> str:
    """Return the remote as ``.dvc/config`` names it; relative paths start at ``.dvc``."""
    if remote is None:
        return f'"../../{folder.name}-remote"'
    if any(character in remote for character in '"\n'):
        raise DataError(f"The remote {remote!r} contains a quote or line break. Give a folder or a URL.")
    refuse_secrets(remote)
    return f'"{remote}"' if "://" in remote else f'"{Path(remote).absolute()}"'


def open_working_copy(data: DataConfig) -> WorkingCopy:
    """Return the line's images in the repository itself, complete and as committed; pull them if they are absent.

    Raises:
        DataError: If the repository is remote or cannot be written, the line is pinned to another revision than
            ``HEAD``, or the working copy differs from the committed state.
    """
    if is_remote(data.repo):
        raise DataError(f"Images can only be added to a repository on this machine, and {data.repo} is not. Clone it.")
    repository = local_repository(data)
    if (change := interrupted(repository)) is not None:
        raise DataError(
            f"{change.command!r} was interrupted in {repository}, whose images are not those of a commit now. Finish "
            "or undo it: csflow data repair LINE"
        )
    if not os.access(repository, os.W_OK):
        raise DataError(f"{repository} cannot be written. Clone it, or ask its owner.")
    _, pinned = locate(data, repository)
    head = git("rev-parse", "HEAD", repository=repository).strip()
    if pinned != head:
        raise DataError(f"data.rev {data.rev!r} is not HEAD of {repository}: the line would not see new images.")
    path = repository_path(data.path)
    out = tracked_folder(repository, head, path)
    _require_committed(repository, out)
    return WorkingCopy(repository, out.folder, repository / path)


@contextmanager
def locked_for(data: DataConfig) -> Iterator[None]:
    """Keep other csflow processes from changing a line's data repository inside the block; wait for one that does.

    Raises:
        DataError: If there is no such repository on this machine.
    """
    if is_remote(data.repo):
        raise DataError(
            f"Images can only be changed in a repository on this machine, and {data.repo} is not. Clone it."
        )
    with locked(local_repository(data)):
        yield


def recorded_since(repository: Path, head: str, path: str, message: str) -> Recorded | None:
    """Return the commit after ``head`` that recorded a folder with this message; ``None`` if there is none."""
    since = git("log", "--format=%H%x00%s", f"{head}..HEAD", "--", f"{path}.dvc", repository=repository)
    for row in since.splitlines():
        revision, _, subject = row.partition("\0")
        if subject == message:
            return Recorded(tracked_folder(repository, revision, path).md5, revision)
    return None


def _require_committed(repository: Path, out: TrackedFolder) -> None:
    """Pull the tracked folder if it is absent; refuse it if it differs from ``HEAD``."""
    if git("status", "--porcelain", "--", out.dvc_file, repository=repository):
        raise DataError(f"{repository / out.dvc_file} has uncommitted changes. Commit or restore it first.")
    folder = repository / out.folder
    dvc_root = repository / out.dvc_root
    with quiet_dvc(dvc_root, site_cache(dvc_root), f"Pulling {out.folder} in {repository}"):
        from dvc.repo import Repo

        if not folder.exists():
            with Repo(str(dvc_root)) as repo:
                repo.pull(targets=[str(repository / out.dvc_file)])
        with committed_files(repository, "HEAD", out) as system:
            entries = committed_entries(system, out)
    if changed := differing_files(folder, {name: entry.md5 for name, entry in entries.items()}):
        raise DataError(
            f"{folder} differs from the committed state: {shorten(changed)}. "
            f"Run 'dvc checkout {out.dvc_file}' to discard that, or 'dvc add' and commit to keep it."
        )


def add_and_push(repository: Path, path: str, message: str) -> Recorded:
    """Record the present files of a folder, push them, and commit its ``.dvc`` file (and nothing else).

    Args:
        repository: Top folder of the data repository.
        path: Posix path of the folder that is or will be tracked.
        message: Of the commit.

    Raises:
        DataError: If DVC, the remote or git fail; the ``.dvc`` file is then as before.
    """
    repository = repository.resolve()
    dvc_file = repository / _dvc_file_of(repository, path)
    ours = [dvc_file, dvc_file.parent / ".gitignore"]
    before = {file: file.read_bytes() if file.exists() else None for file in ours}
    try:
        root = dvc_folder(repository, path)
        with quiet_dvc(root, site_cache(root), f"Recording {path} in {repository}"):
            from dvc.repo import Repo

            with Repo(str(root)) as repo:
                if dvc_file == repository / f"{path}.dvc":
                    repo.add([str(repository / path)])
                else:  # one .dvc file can name several folders, or have a name of its own
                    repo.commit(str(dvc_file), force=True)
                repo.push(targets=[str(dvc_file)])
        revision = commit(repository, [file for file in ours if file.exists()], message)
    except BaseException:
        _restore(repository, before)
        raise
    return Recorded(tracked_folder(repository, revision, path).md5, revision)


def _dvc_file_of(repository: Path, path: str) -> str:
    """Return the ``.dvc`` file that names a folder at ``HEAD``, or the one that DVC will make."""
    try:
        head = git("rev-parse", "--verify", "HEAD", repository=repository).strip()
        known = tracked_folder(repository, head, path)
    except DataError:
        return f"{path}.dvc"
    return known.dvc_file if known.folder == path else f"{path}.dvc"


def _restore(repository: Path, before: dict[Path, bytes | None]) -> None:
    git("reset", "--quiet", "--", *(str(file) for file in before), repository=repository)
    for file, content in before.items():
        if content is None:
            file.unlink(missing_ok=True)
        else:
            write_atomic(file, content)


def site_cache(repository: Path) -> Path:
    """Return the folder of DVC's bookkeeping for a DVC repository, whose ``.gitignore`` names it."""
    return repository / ".dvc" / "tmp" / "site"
