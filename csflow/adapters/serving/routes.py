"""The REST routes of KServe's protocols V1 and V2, without those that load or unload models.

A body is read as bytes and parsed once, here. General validation of a whole body before anybody has looked at what
counts (one input, its shape, its size) costs seconds of the event loop and gigabytes for a megabyte that nobody should
have sent.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import TypeVar

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from kserve import InferResponse
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from prometheus_client import REGISTRY, exposition

from csflow.adapters.serving.bodies import parsed, unpacked
from csflow.adapters.serving.body_limit import TAKE
from csflow.adapters.serving.errors import AbandonedError, NotReadyError
from csflow.adapters.serving.plane import Plane
from csflow.adapters.serving.replies import json_response
from csflow.adapters.serving.requests import images_of_instances
from csflow.adapters.serving.tensors import request_of_body, with_images
from csflow.errors import DataError

_T = TypeVar("_T")

_SMALL = 128 * 1024
"""Bytes of a body that is parsed at once; larger ones are parsed aside, so that probes are answered meanwhile."""

_CLOUD_EVENT = "application/cloudevents+json"

DEADLINES = (("x-request-timeout", 1.0), ("x-envoy-expected-rq-timeout-ms", 0.001))
"""Headers with the time that a client waits, and their units in seconds."""


class Routes:
    """The handlers of all routes.

    Args:
        plane: The lines, and how they are scored.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        # Only one at a time, because a parsed body takes several times its size.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="parse")

    def add_to(self, app: FastAPI) -> None:
        """Add all routes to an application."""
        router = APIRouter()
        for path, handler in (
            ("/", self.alive),
            ("/metrics", self.metrics),
            ("/v1/models", self.models),
            ("/v1/models/{name}", self.model_ready),
            ("/v2", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/v2/models", self.models),
            ("/v2/models/{name}", self.model),
            ("/v2/models/{name}/versions/{version}", self.model),
            ("/v2/models/{name}/ready", self.model_ready),
            ("/v2/models/{name}/versions/{version}/ready", self.model_ready),
        ):
            router.add_api_route(path, handler, methods=["GET", "HEAD"], response_model=None)
        for path, answer in (
            ("/v1/models/{name}:predict", self.predict),
            ("/v2/models/{name}/infer", self.infer),
            ("/v2/models/{name}/versions/{version}/infer", self.infer),
        ):
            router.add_api_route(path, answer, methods=["POST"], response_model=None)
        app.include_router(router)

    async def alive(self) -> Response:
        """Say that the process answers, in V1's words."""
        return json_response({"status": "alive"})

    async def live(self) -> Response:
        """Say that the process answers, in V2's words."""
        return json_response({"live": True})

    async def ready(self) -> Response:
        """Say that the server takes requests; 503 once it is shutting down."""
        if self._plane.stopping:
            raise NotReadyError("The server is stopping.")
        return json_response({"ready": True})

    async def server(self) -> Response:
        """Describe the server."""
        return json_response(self._plane.metadata())

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in the format that the client asks for."""
        try:
            encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
        except (ValueError, TypeError, IndexError):  # the header says something that is no version
            encode, kind = exposition.choose_encoder("")
        return Response(encode(REGISTRY), headers={"content-type": kind})

    async def models(self) -> Response:
        """List the lines."""
        return json_response({"models": self._plane.lines.names()})

    async def model(self, name: str, version: str | None = None) -> Response:
        """Describe the inputs, outputs and versions of a line."""
        return json_response((await self._plane.line(name, version)).describe())

    async def model_ready(self, name: str, version: str | None = None) -> Response:
        """Say that a line can be scored."""
        await self._plane.line(name, version)
        return json_response({"name": name, "ready": True})

    async def predict(self, name: str, request: Request) -> Response:
        """Score the images of a V1 request."""
        due = due_of(request.headers)
        line = await self._plane.line(name)
        images, event = await self._read(request, lambda body: images_of_instances(parsed(body)))
        answer = await _while_wanted(request, self._plane.predict(line, images, due=due))
        return json_response(answer if event is None else event | {"data": answer})

    async def infer(self, name: str, request: Request, version: str | None = None) -> Response:
        """Score the images of a V2 request."""
        due = due_of(request.headers)
        line = await self._plane.line(name, version)
        (asked, images), event = await self._read(
            request, lambda body: with_images(request_of_body(body, request.headers, name))
        )
        answer: InferResponse = await _while_wanted(request, self._plane.infer(line, asked, images, due=due))
        encoded, json_length = answer.to_rest()
        if isinstance(encoded, bytes):
            headers = {INFERENCE_CONTENT_LENGTH_HEADER: str(json_length)}
            return Response(encoded, headers=headers, media_type="application/octet-stream")
        return json_response(encoded if event is None else event | {"data": encoded})

    async def _read(self, request: Request, read: Callable[[bytes], _T]) -> tuple[_T, dict[str, object] | None]:
        """Receive, unpack and read a body, and keep nothing of it but what was read.

        Args:
            request: The request.
            read: Reads the unpacked body; called in a thread if that is large.

        Returns:
            What was read, and the event to answer with if the body was a structured CloudEvent.
        """
        body = b"".join([part async for part in request.stream()])  # request.body() would keep it
        if request.headers.get("content-encoding"):
            packed = body
            body = await self._aside(lambda: unpacked(packed, request.headers))
            request.scope[TAKE](len(body) - len(packed))
            del packed
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()

        def opened() -> tuple[_T, dict[str, object] | None]:
            if kind != _CLOUD_EVENT:
                return read(body), None
            data, event = _opened(body)
            return read(data), event

        return opened() if len(body) <= _SMALL else await self._aside(opened)

    async def _aside(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._large, work)


def due_of(headers: Mapping[str, str]) -> float:
    """Return the time (``time.monotonic``) until which a client waits; infinity if it does not say.

    Raises:
        DataError: If it says something that is not a number of seconds.
    """
    for name, unit in DEADLINES:
        if (given := headers.get(name)) is None:
            continue
        try:
            seconds = float(given) * unit
        except ValueError:
            seconds = -1.0
        if not 0.0 <= seconds < inf:
            raise DataError(f"Header {name} is {given[:40]!r}, expected a number that is not negative.")
        return time.monotonic() + seconds
    return inf


def _opened(body: bytes) -> tuple[bytes, dict[str, object]]:
    """Unpack a structured CloudEvent (specification 1.0, JSON format); return its data and the event to answer with."""
    event = parsed(body)
    if not isinstance(event, dict) or not {"specversion", "id", "source", "type"} <= event.keys():
        raise DataError("A CloudEvent has the fields specversion, id, source and type, and data.")
    if isinstance(packed := event.get("data_base64"), str):
        try:
            data = base64.b64decode(packed, validate=True)
        except ValueError as error:  # binascii.Error is one, and text that is not ASCII another
            raise DataError(f"The CloudEvent's data_base64 is not base64: {error}.") from error
    else:
        try:
            data = orjson.dumps(event.get("data"))
        except orjson.JSONEncodeError as error:
            raise DataError(f"The CloudEvent's data is nested too deeply: {error}.") from error
    return data, {
        "specversion": "1.0",
        "id": str(event["id"])[:200],
        "source": "csflow",
        "type": "io.csflow.scores",
        "datacontenttype": "application/json",
    }


async def _while_wanted(request: Request, work: Awaitable[_T]) -> _T:
    """Await work, and drop it when the client goes.

    Raises:
        AbandonedError: If it has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise AbandonedError("The client has gone.")
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
