"""A tier below the feature store that all runs share: entries come from there, and what was computed goes there.

What goes wrong on the way is said and made up for; it never costs what was computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from csflow.errors import CacheError, StorageError, StoreUnreachableError
from csflow.system.progress import say, track

_TRANSFERS = 16
"""Entries on their way from or to the shared tier at once; they are small, so that time goes by waiting."""


class FeatureTier(Protocol):
    """Where all runs share their entries; every method may be called by several threads.

    All of them raise StorageError if the place refuses, StoreUnreachableError if it does not answer.
    """

    @property
    def place(self) -> str:
        """Address, for messages."""

    def held(self, space: str, shas: Collection[str]) -> set[str]:
        """Which of these entries of a space there are."""

    def get(self, space: str, sha: str) -> bytes | None:
        """An entry as it lies in a store; ``None`` if there is none."""

    def put(self, space: str, sha: str, entry: bytes) -> None:
        """Add an entry, or replace a damaged one."""


class Entries(Protocol):
    """The entries of one space in the local store."""

    @property
    def folder(self) -> Path:
        """Where they lie; the folder's name is that of the space."""

    def path(self, sha: str) -> Path:
        """File of an entry."""

    def intact(self, sha: str) -> bool:
        """Whether a sound entry is there."""

    def adopt(self, sha: str, entry: bytes | None) -> bool:
        """Write an entry that was made elsewhere; whether it was a sound one."""


class Share(Protocol):
    """Brings an entry of the local store to the shared tier, in its own time."""

    def __call__(self, sha: str) -> None:
        """Begin with it."""


def held_entries(tier: FeatureTier | None, space: Entries, absent: Collection[str]) -> set[str]:
    """Which entries the shared tier has; none if it does not answer."""
    if tier is None or not absent:
        return set()
    try:
        return tier.held(space.folder.name, absent)
    except StoreUnreachableError as error:
        say(f"features: {error}")
        say(f"features: going on without {tier.place}; what it may hold of {len(absent)} images is computed here")
        return set()


def fetch_entries(tier: FeatureTier | None, space: Entries, shas: Sequence[str]) -> list[str]:
    """Fetch entries from the shared tier; the ones that could not be had, or were damaged, are returned."""
    if tier is None or not shas:
        return []
    name, lost = space.folder.name, False

    def fetch(sha: str) -> bool:
        nonlocal lost
        if lost:
            return False
        try:
            return space.adopt(sha, tier.get(name, sha))
        except StoreUnreachableError as error:
            lost = True
            say(f"features: {error}")
        except StorageError as error:  # this entry is damaged, or may not be read
            say(f"features: {error}")
        return False

    with ThreadPoolExecutor(_TRANSFERS) as pool:
        fetched = track(pool.map(fetch, shas), total=len(shas), label="fetch features")
        failed = [sha for sha, done in zip(shas, fetched, strict=True) if not done]
    if failed:
        say(f"features: {len(failed)} of {len(shas)} entries of {tier.place} cannot be used and are computed here")
    return failed


@contextmanager
def sharing(tier: FeatureTier | None, space: Entries) -> Iterator[Share]:
    """Yield what brings an entry to the shared tier while others are computed; the block's end waits for all.

    An entry is noted before and struck off after, so that the next extraction brings what this one could not,
    however it ended.
    """
    if tier is None:
        yield lambda sha: None
        return
    notes, name = space.folder / ".unshared", space.folder.name
    failures: list[StorageError] = []

    def bring(sha: str) -> None:
        if failures:
            return
        try:
            tier.put(name, sha, space.path(sha).read_bytes())
        except StorageError as error:
            failures.append(error)
            return
        (notes / sha).unlink(missing_ok=True)

    left = [note.name for note in sorted(notes.glob("*"))]
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        under_way: list[Future[None]] = []

        def share(sha: str) -> None:
            try:
                notes.mkdir(exist_ok=True)
                (notes / sha).touch()
            except OSError as error:
                raise CacheError(f"Cannot write {notes / sha}: {error.strerror}. Free disk space.") from error
            under_way.append(pool.submit(bring, sha))

        for sha in left:
            if space.intact(sha):
                under_way.append(pool.submit(bring, sha))
            else:
                (notes / sha).unlink(missing_ok=True)
        yield share
        for future in under_way:
            future.result()
    if failures:
        waiting = sum(1 for _ in notes.glob("*"))
        say(f"features: {failures[0]}")
        say(
            f"features: {waiting} computed entries are safe in {space.folder} but not in {tier.place} yet: "
            "the next extraction brings them there"
        )
