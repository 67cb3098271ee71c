"""A running server: start, stop, and what it uses."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sidebyside.process import WorkerError

HOST = "127.0.0.1"
READY = "/v2/health/ready"
START_SECONDS = 900
STOP_SECONDS = 60
WATCH_SECONDS = 0.02


@dataclass(frozen=True)
class Usage:
    """What a server and its children use.

    Attributes:
        pss: Bytes, pages shared with other processes in equal parts.
        rss: Bytes, shared pages in full.
        threads: Number of threads.
    """

    pss: int
    rss: int
    threads: int


@dataclass
class Running:
    """A server that answers.

    Attributes:
        name: Of the contender.
        process: Its first process.
        port: Of REST.
        grpc_port: Of gRPC; 0 without.
        start_seconds: From the start of the process until it was ready.
        log: Its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path
    start_seconds: float = 0.0
    killed: bool = field(default=False, init=False)

    def usage(self) -> Usage:
        """Return the memory and threads of now."""
        processes = self._tree()
        memory = [process.memory_full_info() for process in processes]
        return Usage(
            pss=sum(each.pss for each in memory),
            rss=sum(each.rss for each in memory),
            threads=sum(process.num_threads() for process in processes),
        )

    def processor_seconds(self) -> float:
        """Return the processor time used so far, in seconds."""
        times = [process.cpu_times() for process in self._tree()]
        return float(sum(each.user + each.system + each.children_user + each.children_system for each in times))

    def metrics(self) -> dict[str, float]:
        """Return the samples at ``/metrics`` by name and labels; empty if the server has none."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def alive(self) -> bool:
        """Tell if the process still runs."""
        return self.process.poll() is None

    @contextmanager
    def guarded(self, megabytes: int) -> Iterator[Callable[[], int]]:
        """Watch the memory inside the block, and kill the server before the machine has none left.

        Args:
            megabytes: Resident memory above which it is killed.

        Yields:
            A function that returns the largest resident memory so far, in bytes.
        """
        first = psutil.Process(self.process.pid)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the kernel forgets the former peak
        peak, over = first.memory_info().rss, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(WATCH_SECONDS):
                try:
                    now = sum(process.memory_info().rss for process in self._tree())
                    peak = max(peak, now, _high_water(self.process.pid))
                except (psutil.Error, OSError, StopIteration):
                    return
                if now > megabytes * 1e6:
                    self.killed = True
                    self.process.kill()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield lambda: peak
        finally:
            over.set()
            watcher.join()

    def stop(self) -> None:
        """Ask the server to end, and kill it if it does not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _tree(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    ports: tuple[int, int],
    log: Path,
    confine: Callable[[], None] | None = None,
) -> Iterator[Running]:
    """Start a server and wait until it is ready; stop it at the end of the block.

    Args:
        name: Of the contender.
        command: What to run.
        environment: Variables besides those of this process.
        ports: Of REST and gRPC, as named in the command.
        log: File for its output.
        confine: Called in the new process before the command, to limit it.

    Raises:
        WorkerError: If it ends or is not ready in time; with the end of its log.
    """
    began = time.perf_counter()
    # A limit of threads is meant for torch in this process and those that make detectors.
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**inherited, **environment}, preexec_fn=confine
        )
    running = Running(name, process, *ports, log)
    try:
        _wait(running, began + START_SECONDS)
        running.start_seconds = time.perf_counter() - began
        yield running
    finally:
        running.stop()


def free_ports() -> tuple[int, int]:
    """Return two ports that are free at the moment."""
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind((HOST, 0))
        return one.getsockname()[1], other.getsockname()[1]


def _wait(running: Running, last: float) -> None:
    url = f"http://{HOST}:{running.port}{READY}"
    while running.alive() and time.perf_counter() < last:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(WATCH_SECONDS)
        else:
            return
    raise WorkerError(f"The server {running.name} does not answer:\n{running.log.read_text()[-2000:]}")


def _high_water(pid: int) -> int:
    """Return the peak resident memory of a process in bytes, which no sample between can miss."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
