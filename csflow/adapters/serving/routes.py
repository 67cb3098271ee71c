"""The REST routes of KServe's protocols V1 and V2, without those that load or unload models.

A body is read as bytes and parsed once, here. General validation of a whole body before anybody has looked at what
counts (one input, its shape, its size) costs seconds of the event loop and gigabytes for a megabyte that nobody should
have sent.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from kserve.constants.constants import PredictorProtocol
from kserve.errors import ModelNotReady, ServerNotReady
from prometheus_client import REGISTRY, exposition

from csflow.adapters.serving.bodies import unpacked
from csflow.adapters.serving.data_plane import DetectorDataPlane

V1, V2 = PredictorProtocol.REST_V1.value, PredictorProtocol.REST_V2.value


class Routes:
    """The handlers of all routes.

    Args:
        plane: The models, and how their requests are decoded.
    """

    def __init__(self, plane: DetectorDataPlane) -> None:
        self._plane = plane

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
            router.add_api_route(path, handler, methods=["GET"], response_model=None)
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
        if not await self._plane.ready():
            raise ServerNotReady
        return json_response({"ready": True})

    async def server(self) -> Response:
        """Describe the server."""
        return json_response(self._plane.metadata())

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in the format that the client asks for."""
        encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": kind})

    async def models(self) -> Response:
        """List the lines."""
        return json_response({"models": list(self._plane.model_registry.get_models())})

    async def model(self, name: str, version: str | None = None) -> Response:
        """Describe the inputs, outputs and versions of a line."""
        return json_response(await self._plane.model_metadata(name, version))

    async def model_ready(self, name: str, version: str | None = None) -> Response:
        """Say that a line can be scored."""
        await self._require_ready(name, version)
        return json_response({"name": name, "ready": True})

    async def predict(self, name: str, request: Request) -> Response:
        """Score the images of a V1 request."""
        return await self._answer(name, request, V1)

    async def infer(self, name: str, request: Request, version: str | None = None) -> Response:
        """Score the images of a V2 request."""
        return await self._answer(name, request, V2, version)

    async def _answer(self, name: str, request: Request, protocol: str, version: str | None = None) -> Response:
        await self._require_ready(name, version)
        headers = dict(request.headers)
        body = unpacked(await request.body(), headers)
        asked, _ = self._plane.decode(body, headers, protocol, name)
        answer, _ = await self._plane.infer(model_name=name, request=asked, headers=headers)
        encoded, more = self._plane.encode(name, answer, headers, {})
        if isinstance(encoded, bytes):
            return Response(encoded, headers=more, media_type="application/octet-stream")
        return json_response(encoded, more)

    async def _require_ready(self, name: str, version: str | None) -> None:
        self._plane.require_version(name, version)
        if not await self._plane.model_ready(name, True):
            raise ModelNotReady(name)


def json_response(content: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Encode values as a JSON response."""
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/json")
