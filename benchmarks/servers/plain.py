"""The plain server: FastAPI and ONNX Runtime in thirty lines, as anybody would write it.

python -m servers.plain PORT NAME=FILE…
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, HTTPException
from PIL import Image

app = FastAPI()
sessions: dict[str, onnxruntime.InferenceSession] = {}


@app.get("/v2/health/live")
@app.get("/v2/health/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v1/models/{name}:predict")
def predict(name: str, body: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    predictions = []
    for instance in body["instances"]:
        try:
            image = Image.open(io.BytesIO(base64.b64decode(instance["image"]["b64"]))).convert("RGB")
        except OSError as error:
            raise HTTPException(400, str(error)) from error
        scores, _ = sessions[name].run(["score", "map"], {"images": np.asarray(image)[None]})
        predictions.append({"score": float(scores[0])})
    return {"predictions": predictions}


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        line, _, file = argument.partition("=")
        sessions[line] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
