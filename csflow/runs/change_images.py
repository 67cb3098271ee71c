"""Carry out a change of a line's images: all of it or nothing, one at a time, and to be repaired after a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csflow.adapters import versioning
from csflow.adapters.versioning import ImageChange, Recorded, WorkingCopy, journal
from csflow.config import LineConfig
from csflow.data.manifest import Manifest, build_manifest, shorten
from csflow.errors import DataError
from csflow.system.processes import raised_on_sigterm


@dataclass(frozen=True)
class Changed:
    """The result of a change of a line's images.

    Attributes:
        manifest: The line's new manifest.
        files: Paths of the files that were added or removed, relative to the folder of the line's data.
        skipped: What was left out, each with its reason.
        data_md5: DVC's hash of the tracked folder; empty if nothing was changed.
        commit: The commit that records the change; empty if nothing was changed.
    """

    manifest: Manifest
    files: tuple[str, ...]
    skipped: tuple[str, ...]
    data_md5: str
    commit: str


@contextmanager
def working_copy_of(line: LineConfig) -> Iterator[tuple[WorkingCopy, Manifest]]:
    """Lock a line's data repository, and yield its working copy and its images as committed.

    Raises:
        DataError: If the repository is not as committed, or an earlier change was interrupted.
    """
    with raised_on_sigterm(), versioning.locked_for(line.data):
        working_copy = versioning.open_working_copy(line.data)
        yield working_copy, build_manifest(working_copy.root, line=line.line, roles=line.roles)


def carry_out(line: LineConfig, working_copy: WorkingCopy, change: ImageChange, put: Callable[[], None]) -> Changed:
    """Change the files, check the result with the data gate, and record, push and commit it.

    Args:
        line: The line.
        working_copy: Its images, locked.
        change: What is going to change.
        put: Changes the files.

    Raises:
        DataError: If the data gate refuses the result, or the repository cannot be written. Nothing has changed then.
    """
    repository = working_copy.repository
    journal.begin(repository, change)
    try:
        try:
            put()
        except OSError as error:
            raise DataError(
                f"Cannot change files in {working_copy.root}: {error}. Check disk space and permissions."
            ) from error
        manifest = build_manifest(working_copy.root, line=line.line, roles=line.roles)
        _require_quality(manifest, line)
        change = journal.mark_checked(repository, change)
        recorded = versioning.add_and_push(repository, change.tracked, change.message)
    except BaseException:
        journal.undo(repository, change)
        raise
    journal.end(repository)
    inside = working_copy.root.relative_to(repository).as_posix()
    files = tuple(name.removeprefix(f"{inside}/") for name in (*change.added, *change.removed))
    return Changed(manifest, files, (), recorded.md5, recorded.commit)


def repair(line: LineConfig, *, undo: bool = False) -> str:
    """Finish or undo the change that a killed process left in a line's data repository.

    A change whose files were all in place and had passed the data gate is finished, unless ``undo`` is set.

    Returns:
        What was done, in one sentence.

    Raises:
        DataError: If it cannot be finished, for instance because the remote does not answer.
    """
    with raised_on_sigterm(), versioning.locked_for(line.data):
        repository = versioning.local_repository(line.data)
        change = journal.interrupted(repository)
        if change is None:
            return f"Nothing to repair: no change of {repository} was interrupted."
        files = f"{len(change.added)} files added, {len(change.removed)} removed"
        committed = _committed(repository, change)
        if committed is not None:
            journal.end(repository)
            return (
                f"'{change.command}' had been committed as {committed.commit[:12]} ({files}); nothing was left to do."
            )
        journal.drop_index_lock(repository)
        if undo or not change.checked:
            journal.undo(repository, change)
            return f"'{change.command}' was undone: the images are those of {change.head[:12]} again ({files})."
        done = versioning.add_and_push(repository, change.tracked, change.message)
        journal.end(repository)
        return f"'{change.command}' was finished ({files}): commit {done.commit}."


def _committed(repository: Path, change: ImageChange) -> Recorded | None:
    """Return the commit of an interrupted change; ``None`` if it was not made."""
    if not change.checked:
        return None
    return versioning.recorded_since(repository, change.head, change.tracked, change.message)


def _require_quality(manifest: Manifest, line: LineConfig) -> None:
    from csflow.adapters.data_quality import run_data_gate

    report = run_data_gate(manifest, line.quality)
    if not report.success:
        reasons = [f"{failure.explanation} ({shorten(failure.files)})" for failure in report.failures]
        raise DataError(
            "The data gate refuses the result; nothing was changed:\n" + "\n".join(f"- {r}" for r in reasons)
        )
