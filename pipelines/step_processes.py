"""Run the steps of a graph as processes, through kfp's subprocess runner, and end them in order.

kfp would go on after SIGTERM: it knows nothing of signals, so the process that runs the graph would die at once and
leave its step behind. Here the graph's process waits for the step, whose own SIGTERM comes from the command that
started the run, and then starts no further one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from csflow.system.processes import STOP_SIGNALS, handled_by

_TERMINATED = 128 + signal.SIGTERM
_stopping = threading.Event()


@contextmanager
def followed() -> Iterator[None]:
    """Let kfp run its steps through :func:`run_step`, and outlive SIGTERM until the running steps have ended."""
    from kfp.local import subprocess_task_handler as handler

    original = handler.run_local_subprocess
    handler.run_local_subprocess = run_step
    try:
        with handled_by(_stop, (*STOP_SIGNALS, signal.SIGINT)):
            yield
    finally:
        handler.run_local_subprocess = original


def run_step(full_command: list[str]) -> int:
    """Run a step, print its output line by line, and return its exit status."""
    if _stopping.is_set():
        return _TERMINATED
    with subprocess.Popen(
        full_command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        process_group=0,
    ) as process:
        if _stopping.is_set():  # the signal came before the step could receive its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout is not None
        # To the end of the output, not of the first process: that is a shell, which SIGTERM ends before the step.
        for line in process.stdout:
            try:
                print(line, end="", flush=True)
            except BrokenPipeError:  # the command is gone; the step must not notice while it saves its work
                _stopping.set()
    return _TERMINATED if _stopping.is_set() else process.returncode


def _stop(_number: int, _frame: FrameType | None) -> None:
    _stopping.set()
