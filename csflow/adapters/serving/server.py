"""Start and stop the servers of REST and gRPC for detectors, on sockets that are bound already."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from csflow.adapters.serving.access import write_log
from csflow.adapters.serving.body_limit import BodyBudget
from csflow.adapters.serving.decoding import Decoder
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.lines import Lines
from csflow.adapters.serving.metrics import Queues
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.rest import GRACE_SECONDS, RestServer, application
from csflow.adapters.serving.rpc import RpcServer
from csflow.adapters.serving.scheduler import Scheduler
from csflow.adapters.serving.served import ServedDetector
from csflow.system.cores import cores

_logger = logging.getLogger("csflow.serving")

Wanted = Callable[[], Mapping[str, ServedDetector]]
"""Returns the detectors to serve, by line, as they are wanted now."""


class DetectorServer:
    """A server of detectors: one process, REST and, on demand, gRPC.

    Args:
        listeners: Bound TCP sockets of the REST server.
        grpc_port: Port of the gRPC server, on the address of the first listener; ``None`` for no gRPC.
        max_memory: Bytes that the weights of loaded detectors may take; ``None`` for no bound.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], *, grpc_port: int | None, max_memory: int | None = None
    ) -> None:
        self._listeners = list(listeners)
        self._grpc_port = grpc_port
        self._lines = Lines(max_memory)
        limits = Limits()
        self._scheduler = Scheduler(_workers(), Decoder(limits), limits)
        self._plane = Plane(self._lines, self._scheduler)
        self._budget = BodyBudget(limits)
        Queues(self._scheduler.waiting, lambda: self._budget.taken, self._lines.loaded)

    def run(self, wanted: Wanted) -> None:
        """Load the detectors and answer requests until a signal arrives; requests in flight are finished.

        SIGHUP asks again what is wanted: new detectors are loaded beside the old ones, which answer until then.

        Args:
            wanted: Returns the detectors to serve.

        Raises:
            ModelError: If a directory contains no detector.
            DeployError: If the gRPC port is in use.
        """
        write_log()
        try:
            self._lines.serve(wanted())
            asyncio.run(self._serve(wanted))
        finally:
            self._scheduler.close()

    async def _serve(self, wanted: Wanted) -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        # One thread, so that one replacement follows the other.
        with ThreadPoolExecutor(1, thread_name_prefix="replace") as aside:
            terminal = _has_terminal()

            def on_hangup() -> None:
                if terminal and not _has_terminal():  # it was closed, which ends what runs in it
                    asked.set()
                else:
                    aside.submit(self._replace, wanted)

            loop.add_signal_handler(signal.SIGHUP, on_hangup)
            rest = RestServer(application(self._plane, self._budget))
            rpc = None if self._grpc_port is None else RpcServer(self._plane, self._budget, self._grpc_address())
            if rpc is not None:
                await rpc.start()
            serving = asyncio.create_task(rest.serve_on(self._listeners))
            waiting = asyncio.create_task(asked.wait())
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            loop.remove_signal_handler(signal.SIGHUP)
            _logger.info("stopping: requests in flight have %d s", GRACE_SECONDS)
            self._plane.stopping = rest.should_exit = True
            await asyncio.gather(serving, *([] if rpc is None else [rpc.stop(GRACE_SECONDS)]))

    def _replace(self, wanted: Wanted) -> None:
        try:
            self._lines.replace(wanted())
        except Exception:
            _logger.exception("what is served stays as it is")

    def _grpc_address(self) -> str:
        host = self._listeners[0].getsockname()[0]
        return f"[{host}]:{self._grpc_port}" if ":" in host else f"{host}:{self._grpc_port}"


def _has_terminal() -> bool:
    """Return True if this process can be stopped by the keys of a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _workers() -> int:
    """Return the number of workers: each call is computed by up to ``cores()`` threads of the detector's own."""
    return min(cores(), 2)
