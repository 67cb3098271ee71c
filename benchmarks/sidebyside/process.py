"""Start implementations (``child.py``) and measure them alternately."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

WORKER = Path(__file__).resolve().parent.parent / "worker.py"
ROOT = WORKER.parent.parent

DISTURBED = 2.0
"""Ratio of repeats above which a note says that something else was running."""

Name = TypeVar("Name")


class WorkerError(Exception):
    """An implementation raised, or died."""


class Worker:
    """An implementation in a process of its own.

    Args:
        python: Interpreter.
        arguments: Role, folder and what the role needs.
        threads: Threads the process may use.
    """

    def __init__(self, python: str, arguments: Sequence[str], *, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if python == sys.executable:
            # A bare machine has a checkout of csflow, not an installation.
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        else:
            environment.pop("PYTHONPATH", None)  # ours; a peer's environment has its own packages
        self.name = arguments[0]
        self.process = subprocess.Popen(
            [python, str(WORKER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def call(self, method: str, **arguments: Any) -> Any:
        """Run a method of the driver and return its answer.

        Raises:
            WorkerError: With the traceback of the other side.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"call": method, "with": arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} ended before {method}.") from error
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended during {method} (exit status {self.process.wait()}).")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}, {method}:\n{answer['error']}")
        return answer["value"]

    def seconds(self, method: str, **arguments: Any) -> float:
        """Run a method that returns a number."""
        return float(self.call(method, **arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if kind is not None:
            self.process.kill()  # it may be in the middle of a long call
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def by_turns(work: Mapping[Name, Callable[[], float]], repeats: int) -> dict[Name, list[float]]:
    """Measure several implementations alternately, so that a disturbance of the machine affects all of them."""
    results: dict[Name, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, measure in work.items():
            results[name].append(measure())
    for name, values in results.items():
        if max(values) > DISTURBED * min(values):
            print(f"… {name}: {min(values):.3g} to {max(values):.3g}: was the machine busy?", file=sys.stderr)
    return results


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
