"""The gRPC server of KServe's protocol V2, without the calls that load or unload models."""

from __future__ import annotations

from typing import Any, NoReturn

from grpc import ServicerContext, StatusCode, aio  # type: ignore[import-untyped]
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer

from csflow.adapters.serving.body_limit import MAX_BODY
from csflow.adapters.serving.data_plane import DetectorDataPlane
from csflow.errors import DeployError


class DetectorServicer(InferenceServicer):  # type: ignore[misc]
    """KServe's calls, of which those that change what is served are refused: anybody could switch a line off."""

    def __init__(self, plane: DetectorDataPlane) -> None:
        super().__init__(plane, None)

    async def RepositoryModelLoad(self, request: Any, context: ServicerContext) -> NoReturn:
        """Refuse."""
        await _refuse(context)

    async def RepositoryModelUnload(self, request: Any, context: ServicerContext) -> NoReturn:
        """Refuse."""
        await _refuse(context)


class RpcServer:
    """A gRPC server on one address.

    Args:
        plane: The models.
        address: ``HOST:PORT``.

    Raises:
        DeployError: If the port is in use.
    """

    def __init__(self, plane: DetectorDataPlane, address: str) -> None:
        limits = [("grpc.max_send_message_length", MAX_BODY), ("grpc.max_receive_message_length", MAX_BODY)]
        # Without so_reuseport=0 two servers could share one port and each get half of the requests.
        self._server = aio.server(
            interceptors=(ExceptionToStatusInterceptor(),), options=[*limits, ("grpc.so_reuseport", 0)]
        )
        add_GRPCInferenceServiceServicer_to_server(DetectorServicer(plane), self._server)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise DeployError(f"gRPC address {address} is in use. Stop what uses it or choose another port.") from error

    async def start(self) -> None:
        """Take calls from now on."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no further calls, and wait for those in flight.

        Args:
            grace: Seconds after which they are cancelled.
        """
        await self._server.stop(grace)


async def _refuse(context: ServicerContext) -> NoReturn:
    await context.abort(StatusCode.UNIMPLEMENTED, "What is served is chosen when the server starts.")
    raise AssertionError("abort raises")
