"""Data revisions: git says which, DVC brings the files, md5 sums decide whether they may be used."""

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
