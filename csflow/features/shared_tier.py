"""Fetch feature entries from a tier that all runs share, and upload what was computed.

If the tier fails, this is reported and entries are computed instead; entries already computed are never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from csflow.errors import CacheError, StorageError, StoreUnreachableError
from csflow.features.entries import FeatureSpace
from csflow.system.files import cannot_write
from csflow.system.progress import say, track

_TRANSFERS = 16
"""Entries downloaded or uploaded at once; they are small, so that most of the time is spent waiting."""

Upload: TypeAlias = Callable[[str], None]
"""Starts to upload the entry of an image, given by its SHA-256, and returns at once."""


class FeatureTier(Protocol):
    """Entries that all runs share; every method may be called by several threads.

    All of them raise StorageError if the tier refuses, StoreUnreachableError if it does not answer.
    """

    @property
    def address(self) -> str:
        """Return the address of the tier, for messages."""

    def held(self, space: str, shas: Collection[str]) -> set[str]:
        """Return the images, out of ``shas``, of which the tier has an entry in a space."""

    def get(self, space: str, sha: str) -> bytes | None:
        """Return the bytes of an entry; ``None`` if there is none."""

    def put(self, space: str, sha: str, entry: bytes) -> None:
        """Add an entry, or replace a damaged one."""


def held_entries(tier: FeatureTier | None, space: FeatureSpace, absent: Collection[str]) -> set[str]:
    """Return the images of which the shared tier has an entry; none if it does not answer."""
    if tier is None or not absent:
        return set()
    try:
        return tier.held(space.folder.name, absent)
    except StoreUnreachableError as error:
        say(f"features: {error}")
        say(f"features: going on without {tier.address}; what it may hold of {len(absent)} images is computed here")
        return set()


def fetch_entries(tier: FeatureTier | None, space: FeatureSpace, shas: Sequence[str]) -> list[str]:
    """Fetch entries from the shared tier.

    Returns:
        The images whose entries could not be fetched or are damaged.
    """
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
        say(f"features: {len(failed)} of {len(shas)} entries of {tier.address} cannot be used and are computed here")
    return failed


@contextmanager
def sharing(tier: FeatureTier | None, space: FeatureSpace) -> Iterator[Upload]:
    """Yield a function that uploads an entry to the shared tier while others are computed.

    The end of the block waits for all uploads. An entry is noted on disk before its upload and struck off afterwards,
    so that the next extraction uploads what this one could not, however it ended.
    """
    if tier is None:
        yield lambda sha: None
        return
    notes, name = space.folder / ".unshared", space.folder.name
    failures: list[StorageError] = []

    def upload(sha: str) -> None:
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
        uploads: list[Future[None]] = []

        def share(sha: str) -> None:
            try:
                notes.mkdir(exist_ok=True)
                (notes / sha).touch()
            except OSError as error:
                raise CacheError(str(cannot_write(notes / sha, error))) from error
            uploads.append(pool.submit(upload, sha))

        for sha in left:
            if space.intact(sha):
                uploads.append(pool.submit(upload, sha))
            else:
                (notes / sha).unlink(missing_ok=True)
        yield share
        for future in uploads:
            future.result()
    if failures:
        waiting = sum(1 for _ in notes.glob("*"))
        say(f"features: {failures[0]}")
        say(
            f"features: {waiting} computed entries are safe in {space.folder} but not in {tier.address} yet: "
            "the next extraction uploads them"
        )
