"""Start processes that end with this one, children's children included, and find them wherever they are.

Every process of a family inherits a mark in its environment, because neither parents nor process groups nor sessions
hold it together: a parent may be killed, and some launchers give each worker a session of its own. A guard, a small
process that waits at a pipe, notices when the head of the family is gone without a word (kill -9), and ends the rest.

``python -m csflow.system.process_family MARK`` is such a guard.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from csflow.system.processes import handled_by

FAMILY = "CSFLOW_FAMILY"
"""Environment variable with the marks of the families that a process belongs to, parted by colons."""

GRACE_SECONDS = 60.0
"""How long processes may take to end, for instance to write a checkpoint, before they are killed."""


@dataclass(frozen=True)
class Family:
    """Processes that are to end together.

    Attributes:
        mark: The text that all of them have in their environment.
    """

    mark: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the variable that makes a new process a member, and keeps it in the families of this process."""
        return {FAMILY: ":".join(filter(None, [os.environ.get(FAMILY), self.mark]))}

    def members(self) -> list[psutil.Process]:
        """List the running processes of the family that belong to this user."""
        return [process for process, _ in self._found()]

    def ask(self) -> None:
        """Send SIGTERM to all members except those of a family inside this one, whose head forwards it to them."""
        _send([process for process, marks in self._found() if marks[-1] == self.mark], signal.SIGTERM)

    def kill(self) -> None:
        """Kill all members, again and again until none is left that could start another."""
        last = time.monotonic() + 10.0
        while (members := self.members()) and time.monotonic() < last:
            _send(members, signal.SIGKILL)
            time.sleep(0.05)

    def end(self, *, patience: float = GRACE_SECONDS) -> None:
        """Ask all members to end, and kill those that have not ended after ``patience`` seconds."""
        if not self.members():
            return
        self.ask()
        last = time.monotonic() + patience
        while self.members() and time.monotonic() < last:
            time.sleep(0.1)
        self.kill()

    def _found(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        """Yield every member with the marks of its families, from the outermost to the innermost."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # ended meanwhile, or of another user
                marks = process.environ().get(FAMILY, "").split(":")
                if self.mark in marks and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    yield process, marks


@contextmanager
def guarded() -> Iterator[Family]:
    """Yield a new family, and end what is left of it after the block or when this process is killed."""
    family = Family(uuid.uuid4().hex)
    with _guard(family):
        try:
            yield family
        finally:
            family.end()


@contextmanager
def _guard(family: Family) -> Iterator[None]:
    """Let a process of its own wait for the end of this one, which it sees by the end of its standard input."""
    # A member of no family, so that nothing but the end of this process ends it.
    environment = {name: value for name, value in os.environ.items() if name != FAMILY}
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, family.mark],
        env=environment | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def main() -> None:
    """Wait for the end of standard input, then end the family named on the command line."""
    with handled_by(lambda number, frame: None, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)):
        sys.stdin.buffer.read()
        Family(sys.argv[1]).end()


if __name__ == "__main__":
    main()
