"""The gRPC server of KServe's protocol V2, without the calls that load or unload models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpc import (  # type: ignore[import-untyped]
    RpcMethodHandler,
    ServicerContext,
    StatusCode,
    aio,
    method_handlers_generic_handler,
    unary_unary_rpc_method_handler,
)
from kserve import InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from csflow.adapters.serving.access import Access, accounted
from csflow.adapters.serving.body_limit import BodyBudget
from csflow.adapters.serving.errors import RequestError, ScoringError, UnknownLineError, as_request_error
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.messages import parsed_message, request_of_message
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.requests import RequestedImage
from csflow.adapters.serving.tensors import images_of_request
from csflow.errors import DeployError

_logger = logging.getLogger("csflow.serving")

_T = TypeVar("_T")

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class Calls:
    """The calls that describe and score; there are none that change what is served.

    Requests come as bytes and are parsed here, so that they can be checked first and mistakes get a status.

    Args:
        plane: The lines.
        budget: What requests may take.
    """

    def __init__(self, plane: Plane, budget: BodyBudget) -> None:
        self._plane = plane
        self._budget = budget
        # Only one at a time, because a parsed message takes several times its size.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="parse")

    def handlers(self) -> dict[str, RpcMethodHandler]:
        """Return the handlers by the name of the call."""
        return {
            "ServerLive": _handler(pb.ServerLiveRequest, self.server_live),
            "ServerReady": _handler(pb.ServerReadyRequest, self.server_ready),
            "ServerMetadata": _handler(pb.ServerMetadataRequest, self.server_metadata),
            "ModelReady": _handler(pb.ModelReadyRequest, self.model_ready),
            "ModelMetadata": _handler(pb.ModelMetadataRequest, self.model_metadata),
            "ModelInfer": unary_unary_rpc_method_handler(self.model_infer),
        }

    async def server_live(self, request: Any) -> Any:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any) -> Any:
        """Say that the server takes requests."""
        return pb.ServerReadyResponse(ready=not self._plane.stopping)

    async def server_metadata(self, request: Any) -> Any:
        """Describe the server."""
        return pb.ServerMetadataResponse(**self._plane.metadata())

    async def model_ready(self, request: Any) -> Any:
        """Say that a line can be scored."""
        try:
            await self._plane.line(request.name, request.version or None)
        except UnknownLineError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def model_metadata(self, request: Any) -> Any:
        """Describe the inputs, outputs and versions of a line."""
        line = await self._plane.line(request.name, request.version or None)
        return pb.ModelMetadataResponse(**line.describe())

    async def model_infer(self, raw: bytes, context: ServicerContext) -> bytes:
        """Score images."""

        async def answer() -> bytes:
            self._budget.take(0, len(raw))
            try:
                message = await self._aside(len(raw), lambda: parsed_message(raw, pb.ModelInferRequest))
                line = await self._plane.line(message.model_name, message.model_version or None)
                asked, images = await self._aside(len(raw), lambda: _read(message))
                remaining = context.time_remaining()
                due = inf if remaining is None else time.monotonic() + remaining
                found = await self._plane.infer(line, asked, images, due=due)
                return bytes(found.to_grpc().SerializeToString())
            finally:
                self._budget.give_back(len(raw))

        return await _answered(context, "ModelInfer", answer)

    async def _aside(self, size: int, work: Callable[[], _T]) -> _T:
        """Read a message, in a thread if it is large."""
        return work() if size <= _SMALL else await asyncio.get_running_loop().run_in_executor(self._large, work)


_SMALL = 128 * 1024
"""Bytes of a message that is parsed at once; larger ones are parsed aside, so that probes are answered meanwhile."""


def _read(message: Any) -> tuple[InferRequest, list[RequestedImage]]:
    """Read a request for scores; what was parsed is dropped once the images are known."""
    request = request_of_message(message)
    images = images_of_request(request)
    request.inputs = []
    return request, images


def _handler(kind: type[Message], work: Callable[[Any], Awaitable[Any]]) -> RpcMethodHandler:
    async def call(raw: bytes, context: ServicerContext) -> bytes:
        async def answer() -> bytes:
            return bytes((await work(parsed_message(raw, kind))).SerializeToString())

        return await _answered(context, kind.__name__.removesuffix("Request"), answer)

    return unary_unary_rpc_method_handler(call)


class RpcServer:
    """A gRPC server on one address.

    Args:
        plane: The lines.
        budget: What requests may take.
        address: ``HOST:PORT``.

    Raises:
        DeployError: If the port is in use.
    """

    def __init__(self, plane: Plane, budget: BodyBudget, address: str) -> None:
        most = Limits.body_bytes
        self._server = aio.server(
            options=[
                ("grpc.max_send_message_length", most),
                ("grpc.max_receive_message_length", most),
                ("grpc.max_metadata_size", 32 * 1024),
                # Without so_reuseport=0 two servers could share one port and each get half of the requests.
                ("grpc.so_reuseport", 0),
            ]
        )
        calls = method_handlers_generic_handler(_SERVICE, Calls(plane, budget).handlers())
        self._server.add_generic_rpc_handlers((calls,))
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


async def _answered(context: ServicerContext, call: str, answer: Callable[[], Awaitable[bytes]]) -> bytes:
    """Account for a call, and turn errors into a status without a traceback."""
    headers = {str(name).lower(): str(value) for name, value in context.invocation_metadata() or ()}
    access = Access.of("grpc", call, "", headers, scoring=call == "ModelInfer")
    status = "CANCELLED"
    with accounted(access):
        try:
            context.set_trailing_metadata((("x-request-id", access.id),))
            found = await answer()
            status = "OK"
        except asyncio.CancelledError:
            access.outcome = "abandoned"
            raise
        except Exception as error:
            refused = as_request_error(error) or _failure(call, error)
            access.outcome, status = refused.outcome, refused.code
            await _abort(context, refused, access.id)
        finally:
            access.end(status)
    return found


def _failure(call: str, error: Exception) -> RequestError:
    _logger.error("%s failed", call, exc_info=error)
    return ScoringError("The server failed. See its log.")


async def _abort(context: ServicerContext, error: RequestError, name: str) -> NoReturn:
    after = () if error.retry_after is None else (("retry-after", str(error.retry_after)),)
    await context.abort(StatusCode[error.code], str(error), (("x-request-id", name), *after))
    raise AssertionError("abort raises")
