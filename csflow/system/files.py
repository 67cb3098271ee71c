"""Write files so that a reader never sees an incomplete one, and hash them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from csflow.errors import CsflowError, DiskFullError

_TEMPORARY = ".tmp"
"""Suffix of files and folders that are being written; each is locked by its writer."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a full disk and of a used-up quota."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` through a temporary name, fsync and rename.

    Raises:
        DiskFullError: If the disk is full; ``path`` is then untouched.
        CsflowError: If the folder cannot be written; ``path`` is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, needed=len(data)) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, needed: int | None = None) -> Iterator[IO[bytes]]:
    """Yield a file under a temporary name that becomes ``path`` when the block succeeds, fsynced.

    Args:
        path: The file.
        needed: Its size in bytes, for the message if the disk is full.

    Raises:
        DiskFullError: If the disk is full; ``path`` is then untouched.
        CsflowError: If the folder cannot be written; ``path`` is then untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary_file(path)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error, needed) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> CsflowError:
    """Return the error to raise instead of one of the system: what could not be written, why, and what to do.

    Args:
        path: The file or folder.
        error: The system's error.
        needed: Size of the content in bytes, if it is known.
    """
    what = f"Cannot write {path}: {error.strerror or error}."
    if error.errno not in _FULL:
        return CsflowError(f"{what} Check the permissions of the folder, or choose another one.")
    size = "" if needed is None else f"{_bytes(needed)} are needed, "
    return DiskFullError(
        f"{what} {size}{_bytes(free_bytes(path))} are free there. Free disk space (csflow prune lists what is not "
        "needed any more), or choose another folder."
    )


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: Where it will be written; it need not exist yet.
        needed: Number of bytes.
        what: What will be written, for people.

    Raises:
        DiskFullError: If less is free.
    """
    if needed > (free := free_bytes(folder)):
        raise DiskFullError(
            f"{what} need {_bytes(needed)} in {folder}, where {_bytes(free)} are free. Free disk space (csflow prune "
            "lists what is not needed any more), or choose another folder (CSFLOW_HOME)."
        )


def free_bytes(path: Path) -> int:
    """Return the bytes that are free on the disk of a path, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def explain_full_disk(error: BaseException, folders: Iterable[Path]) -> DiskFullError | None:
    """Find out if a full disk is behind an error, whichever library raised it.

    Args:
        error: The error.
        folders: Folders that were written to, of which the fullest is named.

    Returns:
        An error that says so; ``None`` if the disk is not the cause.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, DiskFullError):
            return cause
    for cause in causes:
        # SQLite, safetensors and others only report a text.
        if getattr(cause, "errno", None) in _FULL or any(sign in str(cause) for sign in _SIGNS):
            fullest = min(folders, key=free_bytes)
            named = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return DiskFullError(f"{cannot_write(fullest, named)} ({type(cause).__name__}: {cause})")
    return None


_SIGNS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "database or disk is full")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling of ``target`` that becomes ``target`` when the block succeeds.

    A failing block leaves nothing behind. If another process finished the same ``target`` in the
    meantime (content-addressed names make that harmless), its result is kept.

    Raises:
        DiskFullError: If the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch_directory(target.parent, target.name) as temporary:
            yield temporary
            temporary.chmod(0o755)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        if error.errno in _FULL:
            raise cannot_write(target, error) from error
        raise


@contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new hidden folder in ``parent``, removed after the block, or by :func:`sweep` if this process is killed.

    Args:
        parent: An existing folder.
        name: Text that the folder's name contains.
    """
    while True:
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=_TEMPORARY))
        try:
            handle = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was claimed
            continue
        _claim(handle)
        if temporary.exists():
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove from a folder what killed processes were writing into it; what is being written now stays."""
    for path in sorted(folder.glob(f".*{_TEMPORARY}")):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            finally:
                os.close(handle)


def _temporary_file(path: Path) -> tuple[int, Path]:
    """Open a new hidden file next to ``path`` and claim it."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
        _claim(handle)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept before it was claimed


def _claim(handle: int) -> None:
    """Lock what this process writes for as long as it does, so that :func:`sweep` leaves it alone."""
    with suppress(OSError):  # some network disks know no locks; there nothing is swept either
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the lock file ``lock``, so that only one process of this machine at a time enters the block.

    The kernel releases the lock when its holder ends, even if it crashes; the empty file stays.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_tree(root: Path) -> str:
    """Return the SHA-256 over the relative names and contents of all files under ``root``."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return sha256_json([[path.relative_to(root).as_posix(), sha256_file(path)] for path in files])
