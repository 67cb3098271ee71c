"""Features of images, shared by all runs: the tier below the local feature store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from csflow.adapters.storage.store import THREADS, Store

FEATURES = "features"
AT_ONCE = 8 * THREADS
Item = TypeVar("Item")


class SharedFeatures:
    """Entries of the feature store in an S3 store; fulfils :class:`csflow.cache.FeatureTier`.

    Args:
        store: Where they lie, below ``features/``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def fetch(self, space: str, shas: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Those of the entries that are there, in no promised order of arrival.

        Raises:
            StorageError: If the store refuses or does not answer.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for some in batched(shas):
                contents = pool.map(lambda sha: self._get(space, sha), some)
                yield from ((sha, content) for sha, content in zip(some, contents, strict=True) if content is not None)

    def share(self, space: str, entries: Iterable[tuple[str, Path]]) -> int:
        """Write entries, over what is there under their names.

        Returns:
            How many.

        Raises:
            StorageError: If the store refuses or does not answer.
        """
        count = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for some in batched(entries):
                count += len(list(pool.map(lambda entry: self._put(space, *entry), some)))
        return count

    def _get(self, space: str, sha: str) -> bytes | None:
        return self._store.get(key(space, sha))

    def _put(self, space: str, sha: str, path: Path) -> None:
        self._store.put(key(space, sha), path.read_bytes())


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of :data:`AT_ONCE`: neither memory nor a store that is gone is asked for more at a time."""
    waiting = iter(items)
    while some := list(islice(waiting, AT_ONCE)):
        yield some


def key(space: str, sha: str) -> str:
    """Name of an entry, as the local store names its file."""
    return f"{FEATURES}/{space}/{sha[:2]}/{sha}"
