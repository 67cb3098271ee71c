"""Check out data revisions: git knows the revisions, DVC fetches the files, and md5 digests verify them."""

from csflow.adapters.versioning.checkout import CheckedOut, checkout, local_repository
from csflow.adapters.versioning.journal import ImageChange
from csflow.adapters.versioning.repository import (
    Recorded,
    WorkingCopy,
    add_and_push,
    create_data_repository,
    is_data_repository,
    locked_for,
    open_working_copy,
    recorded_since,
)

__all__ = [
    "CheckedOut",
    "ImageChange",
    "Recorded",
    "WorkingCopy",
    "add_and_push",
    "checkout",
    "create_data_repository",
    "is_data_repository",
    "local_repository",
    "locked_for",
    "open_working_copy",
    "recorded_since",
]
