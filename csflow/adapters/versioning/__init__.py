"""Check out data revisions: git knows the revisions, DVC fetches the files, and md5 digests verify them."""

from csflow.adapters.versioning.checkout import CheckedOut, checkout
from csflow.adapters.versioning.repository import (
    Recorded,
    WorkingCopy,
    add_and_push,
    create_data_repository,
    is_data_repository,
    open_working_copy,
)

__all__ = [
    "CheckedOut",
    "Recorded",
    "WorkingCopy",
    "add_and_push",
    "checkout",
    "create_data_repository",
    "is_data_repository",
    "open_working_copy",
]
