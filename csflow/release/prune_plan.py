"""Say what may be removed, where it is, and why the rest stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version


@dataclass(frozen=True)
class PrunePolicy:
    """The rule for what stays in any case.

    Attributes:
        keep: How many of the newest versions of a line stay.
        before: Only things that were last used before this time may be removed.
    """

    keep: int
    before: datetime

    @classmethod
    def of(cls, keep: int, days: float, now: datetime | None = None) -> PrunePolicy:
        """Make a policy that keeps the newest versions, and everything of the last days."""
        return cls(keep, (now or datetime.now(UTC)) - timedelta(days=days))

    def is_old(self, path: Path) -> bool:
        """Tell if a file, or every file of a folder, is old enough to be removed; False if it vanished meanwhile."""
        try:
            files = [path, *path.rglob("*")] if path.is_dir() else [path]
            return max(file.stat().st_mtime for file in files) < self.before.timestamp()
        except OSError:
            return False


@dataclass(frozen=True)
class Removal:
    """Things of one kind in one location that may be removed.

    Attributes:
        what: Name of the kind for people, for instance ``versions of tiles``.
        where: ``registry``, ``workspace`` or ``store``.
        bytes: Their total size.
        versions: Registered versions.
        paths: Files and folders of the workspace.
        keys: Keys of objects in the store.
    """

    what: str
    where: str
    bytes: int
    versions: tuple[Version, ...] = ()
    paths: tuple[Path, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Count the things to remove."""
        return len(self.versions) or len(self.paths) or len(self.keys)


@dataclass
class PrunePlan:
    """The things that may be removed, and the reasons why the others stay.

    Attributes:
        policy: The policy that the plan follows.
        removals: The things that may be removed.
        live: Reasons to keep a version, by line and number.
        notes: Reasons why other things stay.
        refusal: Why it is not known which features are needed; empty if it is.
    """

    policy: PrunePolicy
    removals: list[Removal] = field(default_factory=list)
    live: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refusal: str = ""

    def add(self, removal: Removal) -> None:
        """Add a removal unless it is empty."""
        if removal.count:
            self.removals.append(removal)

    @property
    def bytes(self) -> int:
        """Add up the size of everything that may be removed."""
        return sum(each.bytes for each in self.removals)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
