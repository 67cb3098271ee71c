"""Start and stop the servers of REST and gRPC for detectors, on sockets that are bound already."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from csflow.adapters.serving.access import write_log
from csflow.adapters.serving.body_limit import BodyBudget
from csflow.adapters.serving.decoding import Decoder
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.lines import Lines
from csflow.adapters.serving.metrics import Queues
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.replacing import Replacing
from csflow.adapters.serving.rest import GRACE_SECONDS, RestServer, application
from csflow.adapters.serving.rpc import RpcServer
from csflow.adapters.serving.scheduler import Scheduler
from csflow.adapters.serving.served import ServerOptions, Wanted
from csflow.system.cores import cores

_logger = logging.getLogger("csflow.serving")


class DetectorServer:
    """A server of detectors: one process, REST and, on demand, gRPC.

    Args:
        listeners: Bound TCP sockets of the REST server.
        options: Who may use it, and how.
    """

    def __init__(self, listeners: Sequence[socket.socket], options: ServerOptions) -> None:
        self._listeners = list(listeners)
        self._options = options
        self._lines = Lines(options.max_memory)
        limits = Limits()
        self._scheduler = Scheduler(_workers(), Decoder(limits), limits)
        self._plane = Plane(self._lines, self._scheduler)
        self._budget = BodyBudget(limits)
        Queues(self._scheduler.waiting, lambda: self._budget.taken, self._lines.loaded)

    def run(self, wanted: Wanted) -> None:
        """Load the detectors and answer requests until a signal arrives; requests in flight are finished.

        SIGHUP reads tokens and certificate again, and asks again what is wanted: new detectors are loaded beside the
        old ones, which answer until then.

        Args:
            wanted: Returns the detectors to serve.

        Raises:
            ModelError: If a directory contains no detector.
            DeployError: If the gRPC port is in use.
        """
        write_log()
        if warning := open_door(self._listeners, self._options):
            _logger.warning(warning)
        try:
            replacing = Replacing(self._lines, wanted)
            replacing.start()
            asyncio.run(self._serve(replacing))
        finally:
            self._scheduler.close()

    async def _serve(self, replacing: Replacing) -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        # One thread, so that one replacement follows the other.
        with ThreadPoolExecutor(1, thread_name_prefix="replace") as aside:
            terminal = _has_terminal()

            def on_hangup() -> None:
                if terminal and not _has_terminal():  # it was closed, which ends what runs in it
                    asked.set()
                elif not asked.is_set():
                    aside.submit(self._refresh, replacing)

            loop.add_signal_handler(signal.SIGHUP, on_hangup)
            watching = asyncio.create_task(self._watch(replacing, aside))
            rest, rpc = self._rest(), self._rpc()
            if rpc is not None:
                await rpc.start()
            serving = asyncio.create_task(rest.serve_on(self._listeners))
            waiting = asyncio.create_task(asked.wait())
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (waiting, watching):
                task.cancel()
            _logger.info("stopping: requests in flight have %d s", GRACE_SECONDS)
            self._plane.stopping = rest.should_exit = True
            await asyncio.gather(serving, *([] if rpc is None else [rpc.stop(GRACE_SECONDS)]))

    def _rest(self) -> RestServer:
        options = self._options
        app = application(self._plane, self._budget, tokens=options.tokens, documented=options.documented)
        return RestServer(app, None if options.certificate is None else options.certificate.context)

    def _rpc(self) -> RpcServer | None:
        options = self._options
        if options.grpc_port is None:
            return None
        host = self._listeners[0].getsockname()[0]
        address = f"[{host}]:{options.grpc_port}" if ":" in host else f"{host}:{options.grpc_port}"
        return RpcServer(self._plane, self._budget, address, tokens=options.tokens, certificate=options.certificate)

    def _refresh(self, replacing: Replacing) -> None:
        for each in (self._options.tokens, self._options.certificate):
            if each is not None:
                each.refresh(at_once=True)
        replacing.look(at_once=True)

    async def _watch(self, replacing: Replacing, aside: ThreadPoolExecutor) -> None:
        if self._options.watch_seconds is None:
            return
        while True:
            await asyncio.sleep(self._options.watch_seconds)
            await asyncio.get_running_loop().run_in_executor(aside, replacing.look)


def open_door(listeners: Sequence[socket.socket], options: ServerOptions) -> str:
    """Return a warning if others than this machine reach a server without tokens or TLS; empty if all is well."""
    missing = [
        text
        for text, given in (
            ("without tokens anybody may use it (--tokens FILE, see csflow token)", options.tokens),
            (
                "without TLS images and tokens can be read on the way (--tls-cert FILE --tls-key FILE)",
                options.certificate,
            ),
        )
        if given is None
    ]
    reachable = sorted({address for each in listeners if (address := _reached(each))})
    if not (missing and reachable):
        return ""
    return (
        f"The server answers at {', '.join(reachable)}: {'; '.join(missing)}. That is right only behind a gateway or "
        "mesh that does both."
    )


def _reached(listener: socket.socket) -> str:
    """Return the address at which other machines reach a socket; empty if they do not."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    address = str(listener.getsockname()[0])
    with suppress(ValueError):
        if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return ""
    return address


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
