"""Write files so that a reader never sees an incomplete one, and hash them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from csflow.errors import CsflowError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` through a temporary name, fsync and rename.

    Raises:
        CsflowError: If the disk is full or the folder cannot be written; ``path`` is then untouched.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file under a temporary name that becomes ``path`` when the block succeeds, fsynced.

    Raises:
        CsflowError: If the disk is full or the folder cannot be written; ``path`` is then untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise CsflowError(
            f"Cannot write {path}: {error.strerror or error}. Free disk space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling of ``target`` that becomes ``target`` when the block succeeds.

    A failing block leaves nothing behind. If another process finished the same ``target`` in the
    meantime (content-addressed names make that harmless), its result is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
