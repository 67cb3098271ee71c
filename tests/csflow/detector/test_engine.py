"""The engine says what torch says, without torch, and refuses a directory that is not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from csflow.detector.detector import Detector
from csflow.detector.directory import BACKBONE, CALIBRATION, CONFIG, GRAPH, LINEAGE, MODEL
from csflow.detector.engine import CHUNK, Engine
from csflow.detector.prediction import Prediction
from csflow.errors import ModelError
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
    assert sizes["graph.onnx"] < 0.1 * (sizes["model.safetensors"] + sizes["backbone.safetensors"])


class TestDamage:
    def test_a_directory_of_format_1(self, copied: Path) -> None:
        (copied / "graph.onnx").unlink()
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

    @pytest.mark.parametrize("name", ["config.json", "calibration.json", "lineage.json", "model.safetensors"])
    def test_a_missing_file(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        with pytest.raises(ModelError):
            Engine.load(copied)

    @pytest.mark.parametrize(("content", "expected"), [(b"", "it is empty"), (b"nothing of the kind", "cannot open")])
    def test_no_graph_at_all(self, copied: Path, content: bytes, expected: str) -> None:
        (copied / "graph.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=expected):
            Engine.load(copied)

    @pytest.mark.parametrize("name", [CONFIG, MODEL, BACKBONE, GRAPH, CALIBRATION, LINEAGE])
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

    def test_a_graph_of_an_older_csflow(self, copied: Path) -> None:
        """It has no seal."""
        graph = onnx.load(copied / GRAPH, load_external_data=False)
        others = [entry for entry in graph.metadata_props if entry.key != "seal"]
        assert len(others) == len(graph.metadata_props) - 1
        del graph.metadata_props[:]
        graph.metadata_props.extend(others)
        (copied / GRAPH).write_bytes(graph.SerializeToString())
        Engine.load(copied)
        Detector.load(copied)

    def test_truncated_weights(self, copied: Path) -> None:
        content = (copied / "model.safetensors").read_bytes()
        (copied / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError):
            Engine.load(copied)
