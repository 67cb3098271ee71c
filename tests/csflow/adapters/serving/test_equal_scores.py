"""An image has one score, whatever else is in its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.config import FlowConfig
from csflow.detector.engine import Engine
from csflow.detector.prediction import Prediction
from csflow.detector.trunk import Trunks

TOLERANCE = 1e-5
"""Largest relative difference of scores, and of maps by their largest value, that is promised."""


def picture(seed: int, side: int) -> Image.Image:
    """Patches of colour with more or less noise."""
    draw = np.random.default_rng(seed)
    patches = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
    pixels = np.asarray(patches, float) + draw.normal(0, 4 + 8 * (seed % 3), (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def differences(directories: Sequence[Path], side: int, threads: int, trials: int) -> tuple[float, float]:
    """The largest differences of scores and maps between images alone and in mixed batches of 2 to 4."""
    trunks = Trunks()
    engines = [Engine.load(directory, threads=threads, trunks=trunks) for directory in directories]
    trunk = engines[0].trunk
    assert all(engine.trunk is trunk for engine in engines)
    pictures = [picture(seed, side) for seed in range(6)]
    levels = [engines[0].sized(each) for each in pictures]
    size = (side, side)

    def together(batch: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Score pairs of an engine and a picture as the server does."""
        activations = trunk.compute([levels[index] for _, index in batch])
        found: dict[int, Prediction] = {}
        for number, engine in enumerate(engines):
            if rows := [row for row, (each, _) in enumerate(batch) if each == number]:
                judged = engine.judge([each[rows] for each in activations], [size] * len(rows))
                found |= dict(zip(rows, judged, strict=True))
        return [found[row] for row in range(len(batch))]

    alone = {(e, p): together([(e, p)])[0] for e in range(len(engines)) for p in range(len(pictures))}
    draw = np.random.default_rng(0)
    scores = maps = 0.0
    for trial in range(trials):
        picks = [(int(draw.integers(len(engines))), int(draw.integers(len(pictures)))) for _ in range(2 + trial % 3)]
        for pick, found in zip(picks, together(picks), strict=True):
            expected = alone[pick]
            assert found.decision == expected.decision
            scores = max(scores, abs(found.score - expected.score) / abs(expected.score))
            largest = float(np.abs(expected.anomaly_map).max())
            maps = max(maps, float(np.abs(found.anomaly_map - expected.anomaly_map).max()) / largest)
    return scores, maps


@pytest.mark.parametrize("threads", [1, 2])
def test_small_detectors(make_detector: Callable[..., Path], threads: int) -> None:
    directories = [make_detector("tiles"), make_detector("tiles", seed=1)]
    scores, maps = differences(directories, 128, threads, trials=24)
    print(f"largest relative difference of scores {scores:.1e}, of maps {maps:.1e}")
    assert max(scores, maps) < TOLERANCE


@pytest.mark.slow
def test_detectors_of_width_64_at_384_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scale_measured

    line = scale_measured.LINE.model_copy(update={"flow": FlowConfig(hidden=64)})
    monkeypatch.setattr(scale_measured, "LINE", line)
    directories = [scale_measured.detector(tmp_path / name) for name in "ab"]
    scores, maps = differences(directories, 400, 2, trials=24)
    print(f"largest relative difference of scores {scores:.1e}, of maps {maps:.1e}")
    assert max(scores, maps) < TOLERANCE
