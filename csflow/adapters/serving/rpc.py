"""The gRPC server of KServe's protocol V2, without the calls that load or unload models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, NoReturn

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
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
from kserve import InferRequest
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
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.tensors import with_images
from csflow.adapters.serving.tls import Certificate
from csflow.adapters.serving.tokens import Tokens
from csflow.errors import DataError, DeployError

_logger = logging.getLogger("csflow.serving")

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class Calls(GenericRpcHandler):  # type: ignore[misc]
    """The calls that describe and score; those that change what is served are unknown.

    Requests are read here and not by gRPC, so that one that cannot be read is accounted for, too.

    Args:
        plane: The lines.
        budget: What requests may take.
    """

    def __init__(self, plane: Plane, budget: BodyBudget) -> None:
        self._plane = plane
        self._budget = budget
        self._calls: dict[str, Callable[[Any, ServicerContext], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }

    def service(self, handler_call_details: HandlerCallDetails) -> Any:
        """Return what handles a call."""
        path = str(handler_call_details.method)
        known = {f"/{_SERVICE.full_name}/{name}": name for name in self._calls}.get(path)

        async def handle(message: bytes, context: ServicerContext) -> bytes:
            async def answer() -> Any:
                if known is None:
                    raise UnknownCallError(path)
                return await self._calls[known](_read(known, message), context)

            found = await _answered(context, known or "unknown", answer)
            return bytes(found.SerializeToString())

        return unary_unary_rpc_method_handler(handle)

    async def _server_live(self, request: Any, context: ServicerContext) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: ServicerContext) -> Any:
        return pb.ServerReadyResponse(ready=not self._plane.stopping)

    async def _server_metadata(self, request: Any, context: ServicerContext) -> Any:
        return pb.ServerMetadataResponse(**self._plane.metadata())

    async def _model_ready(self, request: Any, context: ServicerContext) -> Any:
        try:
            await self._plane.line(request.name, request.version or None)
        except UnknownLineError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: Any, context: ServicerContext) -> Any:
        line = await self._plane.line(request.name, request.version or None)
        return pb.ModelMetadataResponse(**line.describe())

    async def _model_infer(self, request: Any, context: ServicerContext) -> Any:
        remaining = context.time_remaining()
        due = inf if remaining is None else time.monotonic() + remaining
        size = request.ByteSize()
        self._budget.take(0, size)
        try:
            line = await self._plane.line(request.model_name, request.model_version or None)
            _check_contents(request)
            asked, images = with_images(InferRequest.from_grpc(request))
            del request  # the images are kept once
            return (await self._plane.infer(line, asked, images, due=due)).to_grpc()
        finally:
            self._budget.give_back(size)


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


def _read(call: str, message: bytes) -> Any:
    kind = _SERVICE.methods_by_name[call].input_type.name
    try:
        return getattr(pb, kind).FromString(message)
    except DecodeError as error:
        raise DataError(f"The message is not a {kind}.") from error


def _check_contents(request: Any) -> None:
    """Refuse tensors whose content is missing or there twice."""
    raw = len(request.raw_input_contents)
    if raw and raw != len(request.inputs):
        raise DataError(f"The request has {len(request.inputs)} inputs, but {raw} raw_input_contents.")
    for tensor in request.inputs:
        if raw and tensor.HasField("contents"):
            raise DataError(f"Input {tensor.name[:40]!r} has contents although there are raw_input_contents.")


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
