"""The engine says what torch says, without torch, and refuses a directory that is not whole."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.detector.detector import Detector
from csflow.detector.directory import (
    BACKBONE,
    BACKBONE_GRAPH,
    CALIBRATION,
    CONFIG,
    LINEAGE,
    MODEL,
    MODEL_GRAPH,
    WHOLE_GRAPH,
)
from csflow.detector.engine import CHUNK, Engine
from csflow.detector.prediction import Prediction
from csflow.detector.trunk import Trunks
from csflow.errors import ModelError
from tests.csflow.detector.old_formats import in_format_3
from tests.damage import damages, inflict

SIZES = [(200, 160), (64, 64), (31, 300), (500, 400)]


def noise(seed: int) -> Image.Image:
    width, height = SIZES[seed % len(SIZES)]
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.fixture(scope="module")
def directory(make_detector: Callable[..., Path]) -> Path:
    return make_detector("tiles")


@pytest.fixture
def copied(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def assert_same(expected: list[Prediction], found: list[Prediction]) -> None:
    for left, right in zip(expected, found, strict=True):
        assert right.score == pytest.approx(left.score, rel=1e-4)
        assert right.p_value == pytest.approx(left.p_value)
        assert (right.decision, right.threshold, right.image_size) == (left.decision, left.threshold, left.image_size)
        assert right.anomaly_map.dtype == np.float32
        np.testing.assert_allclose(right.anomaly_map, left.anomaly_map, rtol=1e-3, atol=1e-3 * left.anomaly_map.max())
        assert [(box.x, box.y) for box in right.boxes] == [(box.x, box.y) for box in left.boxes]


@pytest.mark.parametrize(("count", "threads"), [(0, 1), (1, 3), (2, 1), (3 * CHUNK + 1, 1), (3 * CHUNK + 1, 3)])
def test_says_what_torch_says(directory: Path, count: int, threads: int) -> None:
    """Any number of images of any sizes, in their order."""
    images = [noise(seed) for seed in range(count)]
    assert_same(Detector.load(directory).predict(images), Engine.load(directory, threads=threads).predict(images))


def test_knows_line_and_calibration(directory: Path) -> None:
    engine, detector = Engine.load(directory), Detector.load(directory)
    assert (engine.line, engine.calibration, engine.lineage) == (detector.line, detector.calibration, detector.lineage)


def test_without_calibration(make_detector: Callable[..., Path]) -> None:
    (prediction,) = Engine.load(make_detector("plain", calibrated=False)).predict([noise(0)])
    assert (prediction.decision, prediction.p_value, prediction.boxes) == (None, None, [])


def test_needs_no_torch(directory: Path) -> None:
    code = f"""
import sys
for name in ("torch", "timm", "onnx", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
from PIL import Image
from csflow.detector.engine import Engine
print(Engine.load(Path({str(directory)!r})).predict([Image.new("RGB", (90, 80))])[0].score)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (prediction,) = Detector.load(directory).predict([Image.new("RGB", (90, 80))])
    assert float(found.stdout) == pytest.approx(prediction.score, rel=1e-4)


def test_the_weights_exist_once(directory: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert sizes[BACKBONE_GRAPH] + sizes[MODEL_GRAPH] < 0.1 * (sizes[MODEL] + sizes[BACKBONE])


def test_one_graph_of_an_older_csflow(directory: Path, tmp_path: Path) -> None:
    """Formats 2 and 3, with and without a seal."""
    images = [noise(seed) for seed in range(3)]
    for sealed in (True, False):
        old = in_format_3(directory, tmp_path / f"sealed-{sealed}", sealed=sealed)
        for load in (Engine.load, Detector.load):
            assert_same(Detector.load(directory).predict(images), load(old).predict(images))
        (old / WHOLE_GRAPH).unlink()
        with pytest.raises(ModelError, match=r"graph\.onnx is missing"):
            Engine.load(old)


def test_lines_with_one_backbone_share_it(directory: Path, make_detector: Callable[..., Path]) -> None:
    trunks = Trunks()
    first, second = (Engine.load(each, trunks=trunks) for each in (directory, make_detector("plates")))
    assert first.trunk is second.trunk
    images = [noise(0), noise(1)]
    together = first.trunk.compute([engine.sized(i) for engine, i in zip((first, second), images, strict=True)])
    for engine, image, row in zip((first, second), images, range(2), strict=True):
        assert_same(engine.predict([image]), engine.judge([each[row : row + 1] for each in together], [image.size]))


def test_a_trunk_that_nobody_uses_is_closed(directory: Path) -> None:
    trunks = Trunks()
    closed = weakref.ref(Engine.load(directory, trunks=trunks).trunk)
    gc.collect()
    assert closed() is None


class TestDamage:
    def test_a_directory_of_format_1(self, copied: Path) -> None:
        config = json.loads((copied / CONFIG).read_text())
        (copied / CONFIG).write_text(json.dumps(config | {"format": 1}))
        with pytest.raises(ModelError, match=r"graph\.onnx is missing.*train again"):
            Engine.load(copied)

    @pytest.mark.parametrize("name", ["model.safetensors", "backbone.safetensors"])
    def test_a_flipped_bit_in_the_weights(self, copied: Path, name: str) -> None:
        content = bytearray((copied / name).read_bytes())
        content[-1] ^= 1
        (copied / name).write_bytes(content)
        with pytest.raises(ModelError, match="was changed"):
            Engine.load(copied)

    def test_another_threshold(self, copied: Path) -> None:
        calibration = json.loads((copied / "calibration.json").read_text())
        (copied / "calibration.json").write_text(json.dumps(calibration | {"threshold": 1e9}))
        with pytest.raises(ModelError, match="was changed"):
            Engine.load(copied)

    @pytest.mark.parametrize("name", [CONFIG, CALIBRATION, LINEAGE, MODEL, MODEL_GRAPH, BACKBONE, BACKBONE_GRAPH])
    def test_a_missing_file(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        with pytest.raises(ModelError):
            Engine.load(copied)

    @pytest.mark.parametrize(("content", "expected"), [(b"", "it is empty"), (b"nothing of the kind", "has no seal")])
    @pytest.mark.parametrize("name", [MODEL_GRAPH, BACKBONE_GRAPH])
    def test_no_graph_at_all(self, copied: Path, name: str, content: bytes, expected: str) -> None:
        (copied / name).write_bytes(content)
        with pytest.raises(ModelError, match=expected):
            Engine.load(copied)

    @pytest.mark.parametrize("name", [CONFIG, MODEL, BACKBONE, BACKBONE_GRAPH, MODEL_GRAPH, CALIBRATION, LINEAGE])
    @pytest.mark.parametrize("load", [Engine.load, Detector.load], ids=["engine", "torch"])
    def test_every_file_is_compared(self, copied: Path, name: str, load: Callable[[Path], object]) -> None:
        """A detector with one changed bit judges nothing, in the server as in torch."""
        for damage, content in damages((copied / name).read_bytes(), flips=4):
            shutil.copytree(copied, copied.with_name("damaged"))
            inflict(copied.with_name("damaged") / name, content)
            try:
                load(copied.with_name("damaged"))
            except ModelError:
                pass
            else:
                pytest.fail(damage)
            shutil.rmtree(copied.with_name("damaged"))
        load(copied)

    def test_truncated_weights(self, copied: Path) -> None:
        content = (copied / "model.safetensors").read_bytes()
        (copied / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError):
            Engine.load(copied)
