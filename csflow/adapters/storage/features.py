"""Keep the shared tier of the feature store: one small object per image, ``features/SPACE/XX/SHA``."""

from __future__ import annotations

from collections.abc import Collection

from csflow.adapters.storage.parallel import in_parallel
from csflow.adapters.storage.store import Store

FEATURES = "features"
_ASKED_SINGLY = 64
"""Up to this many entries are requested one by one; more are looked up in listings of their folders."""


class SharedFeatures:
    """The entries of all runs; implements :class:`csflow.features.shared_tier.FeatureTier`."""

    def __init__(self, store: Store) -> None:
        """Keep entries below ``features/`` of ``store``."""
        self.store = store

    @property
    def address(self) -> str:
        """Return the address of the entries, for messages."""
        return self.store.uri(FEATURES)

    def held(self, space: str, shas: Collection[str]) -> set[str]:
        """Find out which entries exist.

        Args:
            space: Feature space.
            shas: Digests of images.

        Returns:
            Those of ``shas`` that have an entry.

        Raises:
            StorageError: If the store refuses or does not answer.
        """
        wanted = sorted(set(shas))
        if len(wanted) <= _ASKED_SINGLY:
            there = in_parallel(lambda sha: self.store.head(key_of(space, sha)) is not None, wanted, self.store.workers)
            return {sha for sha, is_there in zip(wanted, there, strict=True) if is_there}
        folders = sorted({sha[:2] for sha in wanted})
        listed = in_parallel(lambda two: self._listed(space, two), folders, self.store.workers)
        return set(wanted).intersection(*[set().union(*listed)])

    def get(self, space: str, sha: str) -> bytes | None:
        """Read an entry; ``None`` if there is none."""
        return self.store.read(key_of(space, sha))

    def put(self, space: str, sha: str, entry: bytes) -> None:
        """Store an entry."""
        self.store.write(key_of(space, sha), entry)

    def _listed(self, space: str, two: str) -> set[str]:
        folder = f"{FEATURES}/{space}/{two}/"
        return {stored.key.removeprefix(folder) for stored in self.store.list(folder)}


def key_of(space: str, sha: str) -> str:
    """Return the key of an entry; two digits of its digest make folders that can be listed."""
    return f"{FEATURES}/{space}/{sha[:2]}/{sha}"
