"""Keep the tokens of those who may use a server: only their SHA-256, so that the file gives nobody a token.

Tokens are long and random, so that one round of SHA-256 without salt is enough: nobody can go through all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from csflow.adapters.serving.watched import Watched
from csflow.errors import UsageError

_logger = logging.getLogger("csflow.serving")

VARIABLE = "CSFLOW_TOKENS"
"""Environment variable with hashes of tokens, separated by commas or whitespace."""

_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_ENTRY = re.compile(rf"(?:{_NAME.pattern}\s*:\s*)?([0-9a-fA-F]{{64}})", re.ASCII)
_EXPECTED = "Expected NAME:HASH or HASH, where HASH is 64 hexadecimal digits. Make one with: csflow token NAME"


def new_token(name: str = "") -> tuple[str, str]:
    """Make a token.

    Args:
        name: Whose it is; empty for nobody's in particular.

    Returns:
        The token, and the line for the file of tokens.

    Raises:
        UsageError: If the name has other characters than a line of the file may.
    """
    if name and not _NAME.fullmatch(name):
        raise UsageError(f"The name {name[:80]!r} has other characters than letters, digits and . _ @ -, or over 64.")
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{_hash(token.encode())}" if name else _hash(token.encode())


class Tokens:
    """The tokens that are accepted.

    Args:
        file: File with a hash a line, read again when it changes; ``None`` for no file.
        listed: Further hashes, separated by commas or whitespace; ``None`` for none.

    Raises:
        UsageError: If there is no hash, something else than hashes, or the file is missing or open to every user.
    """

    def __init__(self, file: Path | None, listed: str | None = None) -> None:
        self._file = file
        self._listed = [] if listed is None else _hashes(VARIABLE, re.split(r"[\s,]+", listed))
        self._watched = Watched(*([] if file is None else [file]))
        self._hashes = [*self._listed, *self._read()]

    @classmethod
    def configured(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Tokens | None:
        """Return the tokens of a file and of ``CSFLOW_TOKENS`` together; None if neither is given.

        Raises:
            UsageError: See :class:`Tokens`. A variable that is set but empty is an error too: whoever sets it wants
                a closed door.
        """
        listed = environment.get(VARIABLE)
        return None if file is None and listed is None else cls(file, listed)

    def know(self, token: bytes) -> bool:
        """Return True if a token is accepted, after the same time whichever one it is."""
        self.refresh()
        hashed, found = _hash(token), False
        for each in self._hashes:
            found |= hmac.compare_digest(each, hashed)
        return found

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the file again if it has changed; the tokens before stay if it cannot be used.

        Args:
            at_once: True to look even if that was done a moment ago.
        """
        if not self._watched.changed(at_once=at_once):
            return
        try:
            self._hashes = [*self._listed, *self._read()]
        except UsageError as error:
            _logger.error("%s The tokens before stay.", error)
            return
        _logger.info("%s: %d tokens are accepted", self._file, len(self._hashes))

    def _read(self) -> list[str]:
        if self._file is None:
            return []
        try:
            with self._file.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read().decode("utf-8-sig")
        except OSError as error:
            raise UsageError(
                f"Cannot read the tokens in {self._file}: {error.strerror}. Check the path and its permissions, or "
                "make the first token with: csflow token NAME"
            ) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._file} is not UTF-8. {_EXPECTED}") from error
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise UsageError(
                f"{self._file} is open to every user of this machine (mode {mode:o}). "
                f"Restrict it: chmod 600 {self._file}"
            )
        return _hashes(str(self._file), (line.partition("#")[0] for line in text.splitlines()))


def _hashes(source: str, entries: Iterable[str]) -> list[str]:
    found = []
    for number, entry in enumerate(entries, 1):
        if not (wanted := entry.strip()):
            continue
        if (match := _ENTRY.fullmatch(wanted)) is None:
            # What is there is not shown: it may be a token.
            raise UsageError(f"{source}: entry {number} is no hash of a token. {_EXPECTED}")
        found.append(match[1].lower())
    if not found:
        raise UsageError(f"{source} has no tokens, so that nobody could use the server. {_EXPECTED}")
    return found


def _hash(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()
