"""Hold locks that say who holds them and that end with their holder, even if it is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from csflow.errors import LockedError
from csflow.system.processes import start_time
from csflow.system.progress import say

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error numbers of file systems without locks, on which csflow works as well, but without protection."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: Its id on its host.
        started: Its start, as :func:`csflow.system.processes.start_time` returns it.
        host: Name of its host.
        since: When it took the lock, local time.
    """

    pid: int
    started: str
    host: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process as the holder of a lock it has just taken."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(os.getpid(), start_time(os.getpid()) or "", socket.gethostname(), since)

    def __str__(self) -> str:
        gone = self.host == socket.gethostname() and start_time(self.pid) != self.started
        ended = ", which was killed; what it started is still saving its work" if gone else ""
        return f"process {self.pid} on {self.host} since {self.since}{ended}"


@contextmanager
def held(lock: Path, what: str, *, wait: bool = True) -> Iterator[int | None]:
    """Hold a lock file for as long as the block lasts; it is removed afterwards.

    The kernel releases the lock when its holder ends, and all processes that inherited the descriptor.

    Args:
        lock: The file, in a folder that all who take the lock share.
        what: What is locked, for people.
        wait: If True, wait for another holder to end.

    Yields:
        The descriptor to inherit; ``None`` on a file system without locks.

    Raises:
        LockedError: If another process holds the lock and ``wait`` is False.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = _taken(lock, what, wait)
    if file is None:
        yield None
        return
    with file:
        file.write(json.dumps(asdict(Holder.this_process())))
        file.flush()
        try:
            yield file.fileno()
        finally:
            lock.unlink(missing_ok=True)


def holder_of(lock: Path) -> Holder | None:
    """Return the holder that a lock file names; ``None`` if it names none yet."""
    try:
        return Holder(**json.loads(lock.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _taken(lock: Path, what: str, wait: bool) -> IO[str] | None:
    """Take the lock and return its emptied file; ``None`` on a file system without locks."""
    told = False
    while True:
        file = lock.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{what} is in use by {holder_of(lock) or 'another process'}"
            if not wait:
                file.close()
                raise LockedError(f"{message}. Wait until it has ended, and run the same command again.") from None
            if not told:
                say(f"{message}; waiting for it")
                told = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            file.close()
            if error.errno in _NO_LOCKS:
                return None
            raise
        if _is_at(lock, file):
            file.truncate(0)
            return file
        file.close()  # the holder removed it meanwhile: take the lock on its successor


def _is_at(lock: Path, file: IO[str]) -> bool:
    """Return True if the open file is still the one at the path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    return False
