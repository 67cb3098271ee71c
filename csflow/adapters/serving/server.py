"""Run KServe's model server on sockets of our own, bound to the given address and not to all of them."""

from __future__ import annotations

import asyncio
import socket
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from grpc import aio  # type: ignore[import-untyped]
from kserve import ModelServer
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.errors import InvalidInput
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException

from csflow.adapters.serving.data_plane import DetectorDataPlane
from csflow.adapters.serving.http_errors import (
    MAX_BODY,
    BodyLimit,
    refuse,
    refuse_invalid_body,
    refuse_invalid_input,
)
from csflow.adapters.serving.model import DetectorModel
from csflow.adapters.serving.served import ServedDetector
from csflow.errors import DeployError


class DetectorServer(ModelServer):  # type: ignore[misc]
    """A model server for detectors, one worker, on already bound sockets.

    Args:
        listeners: Bound TCP sockets of the REST server.
        grpc_port: Port of the gRPC server, on the address of the first listener; ``None`` for no gRPC.
    """

    def __init__(self, listeners: Sequence[socket.socket], *, grpc_port: int | None) -> None:
        self._listeners = list(listeners)
        self._host, port = listeners[0].getsockname()[:2]
        super().__init__(http_port=port, grpc_port=grpc_port or 0, enable_grpc=grpc_port is not None, workers=1)
        self.dataplane = DetectorDataPlane(model_registry=self.registered_models)

    def run(self, models: Mapping[str, ServedDetector]) -> None:
        """Load all detectors and answer requests until a signal arrives; requests in flight are finished."""
        # One worker, because the engine uses all cores for one request: more threads would only compete for them.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="score") as executor:
            self.start([DetectorModel(name, served, executor) for name, served in models.items()])

    def start(self, models: list[DetectorModel]) -> None:
        """Register the models and serve them as KServe does, but on our sockets and address."""
        warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # for KServe to fix, not for us
        self._register_and_check_atleast_one_model_is_ready(models)
        rest = _BoundRestServer(
            FASTAPI_APP_IMPORT_STRING, self.dataplane, self.model_repository_extension, self.http_port
        )
        self.servers.append(rest.start_on(self._listeners))
        if self.enable_grpc:
            self._grpc_server = _BoundGrpcServer(self.grpc_port, self.dataplane, self.model_repository_extension, {})
            self.servers.append(self._grpc_server.start_on(self._host))
        self.register_signal_handler()
        asyncio.run(self._serve())


class _BoundRestServer(RESTServer):  # type: ignore[misc]
    """KServe's REST server, which otherwise always binds 0.0.0.0."""

    async def start_on(self, listeners: list[socket.socket]) -> None:
        self.create_application()
        await self._server.serve(sockets=listeners)

    def _add_middlewares(self, app: FastAPI) -> None:
        # Without KServe's timing middleware, which only writes two more lines a request into the log.
        app.add_middleware(BodyLimit)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(InvalidInput, refuse_invalid_input)
        app.add_exception_handler(RequestValidationError, refuse_invalid_body)
        app.add_exception_handler(HTTPException, refuse)


class _BoundGrpcServer(GRPCServer):  # type: ignore[misc]
    """KServe's gRPC server, which otherwise always binds [::] and accepts 8 MiB at most."""

    async def start_on(self, host: str) -> None:
        limits = [("grpc.max_send_message_length", MAX_BODY), ("grpc.max_receive_message_length", MAX_BODY)]
        # Without so_reuseport=0 two servers could share one port and each get half of the requests.
        self._server = aio.server(
            interceptors=(ExceptionToStatusInterceptor(),), options=[*limits, ("grpc.so_reuseport", 0)]
        )
        servicer = InferenceServicer(self._data_plane, self._model_repository_extension)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        try:
            self._server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise DeployError(
                f"gRPC port {self._port} on {host} is in use. Stop what uses it or choose another."
            ) from error
        await self._server.start()
        await self._server.wait_for_termination()
