"""A lock says who holds it, and ends with its holder and those who inherited it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.errors import LockedError
from csflow.system.locks import held, holder_of

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from csflow.system.locks import held
with held(Path(sys.argv[1]), "the line") as lock:
    heir = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock])
    print(heir.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "runs" / ".line.lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock, and the id of one that inherited it."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        heir = int(process.stdout.readline())
        yield process, heir
        process.kill()
        try:
            os.kill(heir, 9)
        except ProcessLookupError:
            return


def test_who_does_not_wait_is_told_who_holds_it(holder: tuple[subprocess.Popen[str], int], lock: Path) -> None:
    said = rf"the line is in use by process {holder[0].pid} on .* since \d{{4}}-"
    with pytest.raises(LockedError, match=said), held(lock, "the line", wait=False):
        pass


def test_who_waits_gets_it_when_the_holder_and_its_heir_are_gone(
    holder: tuple[subprocess.Popen[str], int], lock: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process, heir = holder
    process.kill()
    process.wait()
    with pytest.raises(LockedError, match="which was killed"), held(lock, "the line", wait=False):
        pass
    threading.Timer(0.5, os.kill, (heir, 9)).start()
    begin = time.monotonic()
    with held(lock, "the line"):
        found = holder_of(lock)
        assert found is not None
        assert found.pid == os.getpid()
    assert time.monotonic() - begin > 0.4
    assert "waiting" in capfd.readouterr().err
    assert list(lock.parent.iterdir()) == [], "the file goes with the lock"


COUNTER = """
import sys, time
from pathlib import Path
from csflow.system.locks import held
for _ in range(20):
    with held(Path(sys.argv[1]), "the counter"):
        file = Path(sys.argv[2])
        count = int(file.read_text())
        time.sleep(0.001)
        file.write_text(str(count + 1))
"""


def test_many_at_once_never_hold_it_together_though_its_file_is_removed(lock: Path, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNTER, str(lock), str(tmp_path / "count")]
    workers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"
