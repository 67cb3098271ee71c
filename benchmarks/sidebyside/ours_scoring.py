"""Measure csflow's scoring, through ``csflow.detector.engine.Engine`` as in the server (``Detector`` on a GPU)."""

from __future__ import annotations

import importlib
import time
from importlib import util
from pathlib import Path
from typing import Any

from csflow.data.images import read_image
from csflow.detector.heatmap import upsample
from sidebyside.bench import Bench
from sidebyside.child import Channel


class Driver:
    """Driver that scores encoded images with a detector directory."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.bench = Bench(folder)
        self.scored: dict[int, float] = {}
        self.decided: dict[int, str | None] = {}

    def load(self) -> float:
        """Read the detector and return the seconds, without imports."""
        reader = _reader(self.bench.settings.device)
        began = time.perf_counter()
        self.detector = reader(self.bench.detector)
        elapsed = time.perf_counter() - began
        self.contents = [path.read_bytes() for path in self.bench.images]
        return elapsed

    def score(self, indices: list[int]) -> float:
        """Measure the seconds from encoded images to score, decision and map in the image's size."""
        began = time.perf_counter()
        predictions = self.detector.predict([read_image(self.contents[i]) for i in indices])
        for prediction in predictions:
            upsample(prediction.anomaly_map, prediction.image_size)
        elapsed = time.perf_counter() - began
        for i, prediction in zip(indices, predictions, strict=True):
            self.scored[i], self.decided[i] = prediction.score, prediction.decision
        return elapsed

    def answers(self) -> dict[str, Any]:
        """Return the scores and decisions so far, by image."""
        return {"scores": self.scored, "decisions": self.decided}

    def model_megabytes(self) -> float:
        """Return the megabytes of the flow's file."""
        return (self.bench.detector / "model.safetensors").stat().st_size / 1e6


def _reader(device: str) -> Any:
    if device == "cpu" and util.find_spec("csflow.detector.engine"):
        return importlib.import_module("csflow.detector.engine").Engine.load
    detector = importlib.import_module("csflow.detector.detector").Detector
    return lambda directory: detector.load(directory, device=device)
