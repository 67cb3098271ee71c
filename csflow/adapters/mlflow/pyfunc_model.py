"""Define the registered model as MLflow loads it: a few lines of code around a detector directory, without a pickle.

MLflow copies this file into the model and runs it when the model is loaded ("models from code"). csflow reads the
detector itself, and so must be installed wherever the model is loaded; the model's ``requirements.txt`` names it.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class LoadedDetector(PythonModel):
    """A model that scores encoded images with the detector among its artifacts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the detector directory once, when the model is loaded."""
        from csflow.detector.engine import Engine

        self.engine = Engine.load(Path(context.artifacts["detector"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score images.

        Args:
            context: Unused, because the detector is loaded already.
            model_input: Table whose column ``image`` holds one encoded image per row, as bytes or base64 text.
            params: Unused.

        Returns:
            ``score``, ``p_value``, ``decision`` and ``threshold`` of each row; all but the score are empty for a
            detector without calibration.

        Raises:
            DataError: If a row holds no image.
        """
        from csflow.data.images import decode_image

        encoded = [_encoded_image(value, row) for row, value in enumerate(model_input["image"])]
        depth = self.engine.line.features.bit_depth
        images = [decode_image(content, name=f"row {row}", bit_depth=depth) for row, content in enumerate(encoded)]
        predictions = self.engine.predict(images)
        table = {
            "score": [prediction.score for prediction in predictions],
            "p_value": [prediction.p_value for prediction in predictions],
            "decision": [prediction.decision for prediction in predictions],
            "threshold": [prediction.threshold for prediction in predictions],
        }
        numbers = dict.fromkeys(("score", "p_value", "threshold"), "float64")
        return pd.DataFrame(table, index=model_input.index).astype(numbers)


def _encoded_image(value: object, row: int) -> bytes:
    from csflow.errors import DataError

    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise DataError(f"Row {row}: the text in column 'image' is not base64: {error}.") from error
    raise DataError(f"Row {row}: column 'image' holds {type(value).__name__}, expected bytes or base64 text.")


set_model(LoadedDetector())
