"""Seal the files that csflow keeps with a checksum, recognise damaged ones, and put those aside.

A sealed file contains ``csflow-sha256:`` and 64 hexadecimal digits: the SHA-256 of the whole file with zeros instead of
these digits. JSON has it under the key ``seal``, a safetensors file in its metadata, an ONNX graph in its properties.
Because the checksum is a part of the file, both appear in one rename and travel together, and every other program still
reads the file. Files that an older csflow wrote have no seal and are accepted where they may be met.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from csflow.errors import CsflowError, DamagedFileError
from csflow.system.files import write_atomic
from csflow.system.progress import say

KEY = "seal"
"""Key of the seal in JSON, in the metadata of safetensors and in the properties of a graph."""

_DIGITS = 64
_ZEROS = b"0" * _DIGITS
_MARK = b"csflow-sha256:"
_SEAL = re.compile(_MARK + rb"([0-9a-f]{64})?")

OPEN = (_MARK + _ZEROS).decode()
"""The seal before the digest is known: put it into a file's content, then call :func:`sealed` or :func:`seal`."""

ASIDE = ".damaged"
"""Ending of the name of a file or folder that was put aside; a number follows from the second one on."""


def sealed(content: bytes) -> bytes:
    """Return content that contains :data:`OPEN`, with the digest filled in."""
    start = _digits_of_open_seal(content)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + _DIGITS :]


def seal(path: Path) -> None:
    """Fill the digest into a file that contains :data:`OPEN`, in place, for files too large to copy, and fsync it."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as content:
            start = _digits_of_open_seal(content)
            content[start : start + _DIGITS] = hashlib.sha256(content).hexdigest().encode()
            content.flush()
        os.fsync(file.fileno())


def check(path: Path, *, required: bool = True) -> None:
    """Compare a file with its seal.

    Args:
        path: The file.
        required: If False, a file without a seal is accepted, because a csflow before 0.6 may have written it.

    Raises:
        DamagedFileError: If the file is missing or cannot be read, or differs from what was written.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DamagedFileError(f"{path} is damaged: it is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                damage = _damage(content, required=required)
    except OSError as error:
        raise _unreadable(path, error) from error
    if damage:
        raise DamagedFileError(f"{path} is damaged: {damage}.")


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON with a seal, atomically."""
    write_atomic(path, sealed((json.dumps({**value, KEY: OPEN}, indent=2) + "\n").encode()))


def read_sealed_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Read an object that :func:`write_sealed_json` wrote, without its seal.

    Args:
        path: The file.
        required: If False, a file without a seal is accepted, because a csflow before 0.6 may have written it.

    Raises:
        DamagedFileError: If it is missing, or not what was written.
    """
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {error}.") from error
    if damage := _damage(content, required=required):
        raise DamagedFileError(f"{path} is damaged: {damage}.")
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} is damaged: it holds {type(value).__name__}, expected an object.")
    value.pop(KEY, None)
    return value


def put_aside(path: Path, why: str) -> None:
    """Rename a damaged file or folder, so that it is kept for people but never read again, and say so.

    Args:
        path: The file or folder.
        why: What is wrong with it, as a sentence that names it; usually the text of a :class:`DamagedFileError`.

    Raises:
        CsflowError: If it cannot be renamed.
    """
    number, target = 1, path.with_name(f"{path.name}{ASIDE}")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{ASIDE}-{number}")
    try:
        path.rename(target)
    except FileNotFoundError:  # another process was faster, or the file is simply missing
        return
    except OSError as error:
        raise CsflowError(f"{why} It cannot be renamed ({error.strerror}). Remove it and run again.") from error
    with suppress(OSError):
        os.utime(target)  # for csflow prune, which removes it when it is old
    say(f"damaged: {why} Put aside as {target.name}; it is made again.")


def _unreadable(path: Path, error: OSError) -> DamagedFileError:
    if isinstance(error, FileNotFoundError):
        return DamagedFileError(f"{path} is missing.")
    return DamagedFileError(f"{path} cannot be read: {error.strerror or error}.")


def _damage(content: bytes | mmap.mmap, *, required: bool) -> str:
    """Say what is wrong with content; an empty text if nothing is."""
    found = _SEAL.search(content)
    if found is None:
        return "it has no seal" if required else ""
    if found[1] is None:
        return "its seal is broken"
    start, end = found.span(1)
    with memoryview(content) as view:
        digest = hashlib.sha256(view[:start])
        digest.update(_ZEROS)
        digest.update(view[end:])
    expected = found[1].decode(errors="replace")
    return "" if digest.hexdigest() == expected else f"its SHA-256 is {digest.hexdigest()[:12]}…, not {expected[:12]}…"


def _digits_of_open_seal(content: bytes | mmap.mmap) -> int:
    """Return where the digits of the seal start."""
    start = content.find(OPEN.encode())
    if start < 0:
        raise ValueError("The content has no open seal.")
    return start + len(_MARK)
