"""The errors a user can meet: each says what was found, what was expected and what to do."""

from __future__ import annotations

import signal


class CsflowError(Exception):
    """Base of every error csflow raises on purpose. ``exit_code`` is what a command line returns."""

    exit_code = 1


class UsageError(CsflowError):
    """The command was called in a way that cannot work (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A line's YAML, or a name given on the command line, is wrong."""


class DataError(CsflowError):
    """Images, masks or a data revision are missing, damaged or contradict each other."""


class CacheError(CsflowError):
    """The feature store cannot be read or written."""


class ModelError(CsflowError):
    """A model, its weights or its input do not fit together, or training diverged."""


class RegistryError(CsflowError):
    """A registered model, version or alias is missing or contradicts what is served."""


class NotRegisteredError(RegistryError):
    """The line has no registered model yet: its pipeline never came that far."""


class LockedError(CsflowError):
    """Another process is at work on the same thing."""


class DiskFullError(CsflowError):
    """A disk is full, or a quota is used up."""


class LostFilesError(RegistryError):
    """The files of a registered version are missing, damaged, or cannot be read now."""


class DeployError(CsflowError):
    """An endpoint could not be started, reached or replaced."""


class StorageError(CsflowError):
    """The object store refuses, lacks something, or holds other content than expected."""


class StoreUnreachableError(StorageError):
    """The object store does not answer, or only for a while: the same call may succeed later."""


class DamagedObjectError(StorageError):
    """An object, or a copy of it, is not what was stored."""


class StoppedError(CsflowError):
    """A signal ended the work before it was finished."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}. {message}")
        self.exit_code = 128 + number


class DamagedFileError(CsflowError):
    """A file that csflow keeps cannot be read, or is not what was written."""
