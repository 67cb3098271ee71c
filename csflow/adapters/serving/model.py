"""The ``kserve.Model`` of one line, which checks, decodes and scores images off the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor

from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.infer_type import to_http_parameters
from PIL import Image
from prometheus_client import Counter

from csflow.adapters.serving.requests import (
    WISHES,
    RequestedImage,
    check_count,
    images_of_instances,
    images_of_tensor,
    wishes_of,
)
from csflow.adapters.serving.responses import DATATYPES, PredictionValues, describe_prediction, output_tensors
from csflow.adapters.serving.served import ServedDetector
from csflow.detector.engine import Engine
from csflow.errors import DataError
from csflow.system.files import sha256_tree

_logger = logging.getLogger("csflow.serving")

REQUESTS = Counter("csflow_requests", "Requests by how they ended", ("model_name", "outcome"))
"""Outcomes are ``answered``, ``refused`` (the client's mistake) and ``failed`` (ours); canaries are judged by them."""


class DetectorModel(Model):  # type: ignore[misc]
    """A detector behind KServe's protocols; making one loads the detector.

    Args:
        name: The line's name, part of every address.
        served: Directory and version of the detector.
        executor: Decodes and scores images, so that probes are answered meanwhile.

    Raises:
        ModelError: If the directory contains no detector.
    """

    def __init__(self, name: str, served: ServedDetector, executor: Executor) -> None:
        super().__init__(name)
        self._engine = Engine.load(served.directory)
        # On a cluster the version comes with the detector, in the InferenceService, not as an argument of the runtime.
        self._version = served.version or os.environ.get("CSFLOW_VERSION") or sha256_tree(served.directory)[:12]
        self._executor = executor
        # The first batch is slow (memory, kernels) and fails early if the detector does not work.
        self._engine.predict([Image.new("RGB", (64, 64))])
        self.ready = True

    @property
    def version(self) -> str:
        """Return the version of the detector, as responses name it."""
        return self._version

    def get_input_types(self) -> list[dict[str, object]]:
        """Describe the one input, for ``GET /v2/models/NAME``."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, object]]:
        """Describe all outputs that a request can get."""
        return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in DATATYPES.items()]

    async def predict(
        self,
        payload: object,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, list[PredictionValues]] | InferResponse:
        """Score the images of one request.

        Raises:
            InvalidInput: If the request is wrong; its text says how. Over REST it becomes a 400.
            InferenceError: If scoring fails although the request is correct. Over REST it becomes a 500.
        """
        work = self._infer if isinstance(payload, InferRequest) else self._predict
        try:
            answered = await asyncio.get_running_loop().run_in_executor(self._executor, work, payload)
        except DataError as error:
            self._count("refused")
            raise InvalidInput(str(error)) from error
        except InvalidInput:
            self._count("refused")
            raise
        except Exception as error:
            self._count("failed")
            if isinstance(error, InferenceError):
                raise
            _logger.exception("%s: scoring failed", self.name)
            raise InferenceError(f"{self.name} could not score the images. See the server's log.") from error
        self._count("answered")
        return answered

    def _count(self, outcome: str) -> None:
        REQUESTS.labels(self.name, outcome).inc()

    def _predict(self, body: object) -> dict[str, list[PredictionValues]]:
        return {"predictions": self._score(images_of_instances(body), "instances[{}]")}

    def _infer(self, request: InferRequest) -> InferResponse:
        described = self._score(_images_of_request(request), "Input 'image'[{}]")
        outputs = [
            InferOutput(name=name, shape=[len(values)], datatype=datatype, data=values)
            for name, datatype, values in output_tensors(described)
        ]
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=self.name,
            model_version=self._version,
            infer_outputs=outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _score(self, requested: Sequence[RequestedImage], path: str) -> list[PredictionValues]:
        images = []
        for index, image in enumerate(requested):
            try:
                images.append(self._engine.read(image.content))
            except DataError as error:
                raise DataError(f"{path.format(index)}: {error}") from error
        calibration = self._engine.calibration
        predictions = self._engine.predict(images)
        return [
            describe_prediction(prediction, image, calibration, self._version)
            for prediction, image in zip(predictions, requested, strict=True)
        ]


def _images_of_request(request: InferRequest) -> list[RequestedImage]:
    """Read a V2 request; a client may also ask for ``heatmap`` or ``boxes`` by naming it among the wanted outputs."""
    if not request.inputs:
        raise DataError("The request has no input. Expected one input named 'image'.")
    images = [content for tensor in request.inputs for content in _images(tensor)]
    check_count(len(images))
    wanted = {output.name for output in request.request_outputs or []}
    wishes = {name: True for name in WISHES if name in wanted}
    for parameters in (request.parameters, *(tensor.parameters for tensor in request.inputs)):
        wishes |= wishes_of(to_http_parameters(parameters) if parameters else None)
    return [RequestedImage(content, **wishes) for content in images]


def _images(tensor: InferInput) -> list[bytes]:
    raw = tensor._raw_data  # kserve has no public way to read a binary tensor that is not UTF-8
    return images_of_tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data, raw)
