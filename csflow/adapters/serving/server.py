"""Start and stop the servers of REST and gRPC for detectors, on sockets that are bound already."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kserve.model_repository import ModelRepository

from csflow.adapters.serving.data_plane import DetectorDataPlane
from csflow.adapters.serving.model import DetectorModel
from csflow.adapters.serving.rest import GRACE_SECONDS, RestServer
from csflow.adapters.serving.rpc import RpcServer
from csflow.adapters.serving.served import ServedDetector

_logger = logging.getLogger("csflow.serving")


class DetectorServer:
    """A server of detectors: one process, REST and, on demand, gRPC.

    Args:
        listeners: Bound TCP sockets of the REST server.
        grpc_port: Port of the gRPC server, on the address of the first listener; ``None`` for no gRPC.
    """

    def __init__(self, listeners: Sequence[socket.socket], *, grpc_port: int | None) -> None:
        self._listeners = list(listeners)
        self._grpc_port = grpc_port
        self._models = ModelRepository()
        self._plane = DetectorDataPlane(model_registry=self._models)

    def run(self, models: Mapping[str, ServedDetector]) -> None:
        """Load all detectors and answer requests until a signal arrives; requests in flight are finished.

        Raises:
            ModelError: If a directory contains no detector.
            DeployError: If the gRPC port is in use.
        """
        # One worker, because the engine uses all cores for one request: more threads would only compete for them.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="score") as executor:
            for name, served in models.items():
                self._models.update(DetectorModel(name, served, executor), name)
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        rest = RestServer(self._plane)
        rpc = None if self._grpc_port is None else RpcServer(self._plane, self._grpc_address())
        if rpc is not None:
            await rpc.start()
        serving = asyncio.create_task(rest.serve_on(self._listeners))
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        _logger.info("stopping: requests in flight have %d s", GRACE_SECONDS)
        self._plane.stopping = rest.should_exit = True
        await asyncio.gather(serving, *([] if rpc is None else [rpc.stop(GRACE_SECONDS)]))

    def _grpc_address(self) -> str:
        host = self._listeners[0].getsockname()[0]
        return f"[{host}]:{self._grpc_port}" if ":" in host else f"{host}:{self._grpc_port}"
