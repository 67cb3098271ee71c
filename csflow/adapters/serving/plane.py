"""Answer decoded requests: find the line, queue the images, and describe the predictions."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from math import inf
from typing import cast

from kserve import InferOutput, InferRequest, InferResponse

from csflow.adapters.serving.access import current
from csflow.adapters.serving.errors import NotReadyError, RequestError, ScoringError, as_request_error
from csflow.adapters.serving.lines import Line, Lines
from csflow.adapters.serving.metrics import IMAGES, P_VALUES, SCORES
from csflow.adapters.serving.orders import Order
from csflow.adapters.serving.requests import RequestedImage
from csflow.adapters.serving.responses import PredictionValues, describe_prediction, output_tensors
from csflow.adapters.serving.scheduler import Scheduler
from csflow.adapters.serving.tensors import outputs_of_request
from csflow.detector.prediction import Prediction
from csflow.errors import ModelError

_logger = logging.getLogger("csflow.serving")


class Plane:
    """What all protocols share.

    Args:
        lines: The lines.
        scheduler: Scores their images.

    Attributes:
        stopping: True once the server has been asked to stop: it still answers, but is not ready for more.
    """

    def __init__(self, lines: Lines, scheduler: Scheduler) -> None:
        self.lines = lines
        self.stopping = False
        self._scheduler = scheduler

    def metadata(self) -> dict[str, object]:
        """Describe the server."""
        return {"name": "csflow", "version": version("csflow"), "extensions": ["binary_tensor_data"]}

    async def line(self, name: str, wanted: str | None = None) -> Line:
        """Return a line that can be scored, and note it in the account of the request.

        Raises:
            UnknownLineError: If it is not served, or not in the wanted version.
            NotReadyError: If its detector cannot be loaded.
        """
        try:
            line = await self.lines.get(name, wanted)
        except ModelError as error:
            _logger.error("%s: %s", name, error)
            raise NotReadyError(f"Line {name} cannot be loaded. See the server's log.") from error
        access = current()
        access.line, access.version = line.name, line.version
        return line

    async def predict(self, line: Line, images: Sequence[RequestedImage], *, due: float) -> dict[str, object]:
        """Answer a V1 request.

        Args:
            line: The line.
            images: What the client sent.
            due: Time (``time.monotonic``) after which the client does not wait any more.

        Raises:
            DataError: If the request is wrong.
            RequestError: If there is no answer for another reason.
        """
        return {"predictions": await self._score(line, images, "instances[{}]", due)}

    async def infer(
        self, line: Line, request: InferRequest, images: Sequence[RequestedImage], *, due: float
    ) -> InferResponse:
        """Answer a V2 request, of REST or gRPC.

        Args:
            line: The line.
            request: What the client wishes.
            images: The images of the request.
            due: As in :meth:`predict`.

        Raises:
            DataError: If the request is wrong.
            RequestError: If there is no answer for another reason.
        """
        wanted = outputs_of_request(request)
        described = await self._score(line, images, "Input 'image'[{}]", due)
        outputs = [
            InferOutput(name=name, shape=[len(values)], datatype=datatype, data=values)
            for name, datatype, values in output_tensors(described)
            if not wanted or name in wanted
        ]
        present = {output.name for output in outputs}
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=line.name,
            model_version=line.version,
            infer_outputs=outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=[output for output in request.request_outputs or [] if output.name in present] or None,
        )

    async def _score(
        self, line: Line, images: Sequence[RequestedImage], path: str, due: float
    ) -> list[PredictionValues]:
        def answer(prediction: Prediction, image: RequestedImage) -> PredictionValues:
            _observe(line, prediction)
            return describe_prediction(prediction, image, line.engine.calibration, line.version)

        access = current()
        access.images = len(images)
        order = Order(line.name, line.engine, images, answer, path=path, due=due)
        loop = asyncio.get_running_loop()
        late = None if due == inf else loop.call_later(max(0.0, due - time.monotonic()), order.is_over)
        try:
            # If the caller is cancelled, the order is, and what has not been computed is dropped.
            found = await asyncio.wrap_future(self._scheduler.submit(order))
        except Exception as error:
            raise _typed(error, line.name) from error
        finally:
            access.phases = order.phases
            if late is not None:
                late.cancel()
        described = cast("list[PredictionValues]", found)
        access.decisions.update(str(each["decision"]) for each in described)
        access.outcome = "answered"
        return described


def _typed(error: Exception, line: str) -> RequestError:
    if (typed := as_request_error(error)) is not None:
        return typed
    _logger.error("%s: scoring failed", line, exc_info=error)
    return ScoringError(f"{line} could not score the images. See the server's log.")


def _observe(line: Line, prediction: Prediction) -> None:
    IMAGES.labels(line.name, line.version, prediction.decision or "none").inc()
    if prediction.p_value is not None:
        P_VALUES.labels(line.name, line.version).observe(prediction.p_value)
    if prediction.threshold:
        SCORES.labels(line.name, line.version).observe(prediction.score / prediction.threshold)
