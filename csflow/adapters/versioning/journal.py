"""Change the images of a data repository so that a crash at any point can be finished or undone later.

One process at a time changes a repository. Before it touches anything it writes a journal into git's own folder, so
that it shows in no ``git status``: the files it is going to add and remove, and the text of the ``.dvc`` file. The
journal disappears when the change is committed or undone. Removed files wait there, too, until the commit is made.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from csflow.adapters.versioning.git import git
from csflow.errors import DataError
from csflow.system.files import write_atomic, write_json
from csflow.system.locks import held

_JOURNAL, _REMOVED, _LOCK = "csflow/journal.json", "csflow/removed", "csflow/lock"
_QUIET_SECONDS = 1.0
"""How long the index lock of a killed git must stay unchanged before it is removed."""


@dataclass(frozen=True)
class ImageChange:
    """A change of a repository's images, as its journal records it.

    Attributes:
        command: The command that makes it, for messages.
        message: Message of its commit.
        head: Full id of the commit that it starts from.
        tracked: Posix path of the folder that DVC tracks.
        added: Posix paths of the new files in the repository.
        folders: Posix paths of the new folders, parents first.
        removed: Posix paths of the files that go.
        before: Text of the ``.dvc`` file and of its ``.gitignore`` by posix path; ``None`` if there was none.
        checked: True if all files are in place and the data gate passes.
    """

    command: str
    message: str
    head: str
    tracked: str
    added: tuple[str, ...]
    folders: tuple[str, ...]
    removed: tuple[str, ...]
    before: Mapping[str, str | None]
    checked: bool = False

    @classmethod
    def of(
        cls, repository: Path, tracked: str, *, command: str, message: str, added: list[str], removed: list[str]
    ) -> ImageChange:
        """Describe a change that starts from the present state of a repository."""
        parents = {folder for name in added for folder in (repository / name).parents if not folder.exists()}
        ours = [f"{tracked}.dvc", (Path(tracked).parent / ".gitignore").as_posix()]
        return cls(
            command=command,
            message=message,
            head=git("rev-parse", "HEAD", repository=repository).strip(),
            tracked=tracked,
            added=tuple(added),
            folders=tuple(folder.relative_to(repository).as_posix() for folder in sorted(parents)),
            removed=tuple(removed),
            before={name: _text(repository / name) for name in ours},
        )


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keep other csflow processes from changing a repository inside the block; wait for one that does."""
    with held(_folder(repository) / _LOCK, f"the data repository {repository}"):
        yield


def interrupted(repository: Path) -> ImageChange | None:
    """Return the change that a killed process left unfinished; ``None`` if there is none.

    Raises:
        DataError: If its journal cannot be read.
    """
    journal = _folder(repository) / _JOURNAL
    try:
        plain: dict[str, Any] = json.loads(journal.read_text())
        lists: dict[str, Any] = {name: tuple(plain[name]) for name in ("added", "folders", "removed")}
        return ImageChange(**plain | lists)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"The journal {journal} of an interrupted change cannot be read ({error}). Restore the folder by hand: "
            "'git checkout -- DATA.dvc' and 'dvc checkout'; then delete the journal."
        ) from error


def begin(repository: Path, change: ImageChange) -> None:
    """Write the journal of a change that is about to start."""
    write_json(_folder(repository) / _JOURNAL, asdict(change))


def mark_checked(repository: Path, change: ImageChange) -> ImageChange:
    """Note that only recording and committing are left to do, so that a repair finishes the change."""
    checked = replace(change, checked=True)
    begin(repository, checked)
    return checked


def set_aside(repository: Path, change: ImageChange) -> None:
    """Move the files that go into git's folder, where :func:`undo` finds them."""
    for name in change.removed:
        target = _folder(repository) / _REMOVED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(repository / name, target)
        with suppress(OSError):  # a folder that is not empty stays, and so do those above it
            for folder in Path(name).parents:
                if folder.is_relative_to(change.tracked) and folder != Path(change.tracked):
                    (repository / folder).rmdir()


def undo(repository: Path, change: ImageChange) -> None:
    """Bring back the state from which a change started."""
    waiting = _folder(repository) / _REMOVED
    for name in change.removed:
        if (waiting / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(waiting / name, repository / name)
    for name in change.added:
        (repository / name).unlink(missing_ok=True)
    for name in reversed(change.folders):
        with suppress(OSError):  # gone already, or somebody put files there
            (repository / name).rmdir()
    git("reset", "--quiet", "--", *change.before, repository=repository)
    for name, text in change.before.items():
        if text is None:
            (repository / name).unlink(missing_ok=True)
        elif _text(repository / name) != text:
            write_atomic(repository / name, text)
    end(repository)


def end(repository: Path) -> None:
    """Forget a change that is committed or undone."""
    (_folder(repository) / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(_folder(repository) / _REMOVED, ignore_errors=True)


def drop_index_lock(repository: Path) -> None:
    """Remove the index lock of a killed git: one that is not older than the journal and does not change."""
    lock, journal = _folder(repository) / "index.lock", _folder(repository) / _JOURNAL
    with suppress(OSError):
        found = lock.stat()
        if found.st_mtime < journal.stat().st_mtime - 1:
            return
        time.sleep(_QUIET_SECONDS)
        if os.path.samestat(found, lock.stat()) and lock.stat().st_mtime == found.st_mtime:
            lock.unlink()


def _folder(repository: Path) -> Path:
    """Return git's folder of this working copy."""
    return Path(git("rev-parse", "--absolute-git-dir", repository=repository).rstrip("\n"))


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
