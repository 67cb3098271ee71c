"""The gRPC server of KServe's protocol V2, without the calls that load or unload models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpc import (  # type: ignore[import-untyped]
    GenericRpcHandler,
    HandlerCallDetails,
    RpcMethodHandler,
    ServicerContext,
    StatusCode,
    aio,
    stream_unary_rpc_method_handler,
    unary_unary_rpc_method_handler,
)
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from csflow.adapters.serving.access import Access, accounted
from csflow.adapters.serving.authentication import OPEN_CALLS, authenticate
from csflow.adapters.serving.body_limit import BodyBudget
from csflow.adapters.serving.connections import ConnectionLimits
from csflow.adapters.serving.errors import (
    RequestError,
    ScoringError,
    UnknownCallError,
    UnknownLineError,
    as_request_error,
)
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.messages import parsed_message, request_of_message
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.tensors import with_images
from csflow.adapters.serving.tls import Certificate
from csflow.adapters.serving.tokens import Tokens
from csflow.errors import DeployError

_logger = logging.getLogger("csflow.serving")

_T = TypeVar("_T")

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

_SMALL = 128 * 1024
"""Bytes of a message that is parsed at once; larger ones are parsed aside, so that probes are answered meanwhile."""


class Calls(GenericRpcHandler):  # type: ignore[misc]
    """The calls that describe and score; those that change what is served are unknown.

    Requests come as bytes and are read here and not by gRPC, so that they can be checked first, and one that cannot be
    read is accounted for, too.

    Args:
        plane: The lines.
        budget: What requests may take.
    """

    def __init__(self, plane: Plane, budget: BodyBudget) -> None:
        self._plane = plane
        self._budget = budget
        # Only one at a time, because a parsed message takes several times its size.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._calls: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Any]]]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
        }

    def service(self, handler_call_details: HandlerCallDetails) -> Any:
        """Return what handles a call."""
        path = str(handler_call_details.method)
        name = path.removeprefix(f"/{_SERVICE.full_name}/")

        async def handle(message: bytes, context: ServicerContext) -> bytes:
            async def answer() -> Any:
                if name == "ModelInfer":
                    return await self._model_infer(message, context)
                if name not in self._calls:
                    raise UnknownCallError(path)
                kind, call = self._calls[name]
                return await call(parsed_message(message, kind))

            known = name if name == "ModelInfer" or name in self._calls else "unknown"
            return bytes((await _answered(context, known, answer)).SerializeToString())

        return unary_unary_rpc_method_handler(handle)

    async def _server_live(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=not self._plane.stopping)

    async def _server_metadata(self, request: Any) -> Any:
        return pb.ServerMetadataResponse(**self._plane.metadata())

    async def _model_ready(self, request: Any) -> Any:
        try:
            await self._plane.line(request.name, request.version or None)
        except UnknownLineError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: Any) -> Any:
        line = await self._plane.line(request.name, request.version or None)
        return pb.ModelMetadataResponse(**line.describe())

    async def _model_infer(self, raw: bytes, context: ServicerContext) -> Any:
        remaining = context.time_remaining()
        due = inf if remaining is None else time.monotonic() + remaining
        size = len(raw)
        self._budget.take(0, size)
        try:
            message = await self._aside(size, partial(parsed_message, raw, pb.ModelInferRequest))
            line = await self._plane.line(message.model_name, message.model_version or None)
            asked = request_of_message(message)
            del message  # the images are not kept in it, too
            asked, images = await self._aside(size, partial(with_images, asked))
            return (await self._plane.infer(line, asked, images, due=due)).to_grpc()
        finally:
            self._budget.give_back(size)

    async def _aside(self, size: int, work: Callable[[], _T]) -> _T:
        """Read a message, in a thread if it is large."""
        return work() if size <= _SMALL else await asyncio.get_running_loop().run_in_executor(self._large, work)


class Gate(aio.ServerInterceptor):  # type: ignore[misc]
    """Refuse calls without a token, known or unknown ones, before their message is received.

    Args:
        tokens: Those that are accepted.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]], call: HandlerCallDetails
    ) -> RpcMethodHandler:
        """Return the handler of a call if it may, otherwise one that refuses."""
        try:
            if call.method not in OPEN_CALLS:
                authenticate(self._tokens, _values(call.invocation_metadata, "authorization"))
        except RequestError as error:
            refused, name = error, call.method.rpartition("/")[2]
            known = name if name in _SERVICE.methods_by_name else "unknown"  # strangers write no names into the log

            async def raised() -> NoReturn:
                raise refused

            async def refuse(_messages: Any, context: ServicerContext) -> Any:
                return await _answered(context, known, raised)

            # A handler of streams may answer without reading any, and a client does not see the difference.
            return stream_unary_rpc_method_handler(refuse)
        return await continuation(call)


class RpcServer:
    """A gRPC server on one address.

    Args:
        plane: The lines.
        budget: What requests may take.
        address: ``HOST:PORT``.
        tokens: Those of the clients that are let in; ``None`` for all clients.
        certificate: Certificate and key for encrypted connections; ``None`` for plain ones.

    Raises:
        DeployError: If the port is in use.
    """

    def __init__(
        self,
        plane: Plane,
        budget: BodyBudget,
        address: str,
        *,
        tokens: Tokens | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        most = Limits.body_bytes
        self._server = aio.server(
            interceptors=[] if tokens is None else [Gate(tokens)],
            options=[
                ("grpc.max_send_message_length", most),
                ("grpc.max_receive_message_length", most),
                ("grpc.max_metadata_size", 32 * 1024),
                # Without so_reuseport=0 two servers could share one port and each get half of the requests.
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", int(1000 * ConnectionLimits.head_seconds)),
            ],
        )
        self._server.add_generic_rpc_handlers((Calls(plane, budget),))
        try:
            if certificate is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, certificate.credentials())
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


def _values(metadata: Sequence[tuple[str, str | bytes]], name: str) -> list[bytes]:
    """Return all values of a call's metadata under a name."""
    values = [value for key, value in metadata or () if key.lower() == name]
    return [value if isinstance(value, bytes) else value.encode() for value in values]


async def _answered(context: ServicerContext, call: str, answer: Callable[[], Awaitable[Any]]) -> Any:
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
            if (remaining := context.time_remaining()) is not None and remaining <= 0:
                access.outcome, status = "late", "DEADLINE_EXCEEDED"  # gRPC has seen it first
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
