"""One ONNX file that needs nothing else, run here as a device would: with an inference engine and raw pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from csflow.config import FeatureConfig
from csflow.data.images import to_pyramid_levels
from csflow.detector.calibration import Calibration
from csflow.detector.detector import Detector
from csflow.detector.export import export_file
from csflow.detector.graph_file import check_agreement
from csflow.detector.prediction import judged
from csflow.detector.sizing import put_sizing_in
from csflow.errors import ModelError

pytestmark = pytest.mark.slow


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(coarse).astype(int) + draw.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def run(file: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": pixels}), strict=True))


@pytest.fixture(scope="module")
def detector(make_detector: Callable[..., Path]) -> Detector:
    return Detector.load(make_detector("tiles"))


@pytest.fixture(scope="module")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("device") / "tiles.onnx"
    export_file(detector, target)
    return target


@pytest.mark.parametrize("size", [(128, 128), (310, 200), (60, 90), (1000, 700)])
def test_says_what_the_detector_says(file: Path, detector: Detector, size: tuple[int, int]) -> None:
    images = [picture(seed, size) for seed in range(3)]
    found = run(file, np.stack([np.asarray(image) for image in images]))
    for index, prediction in enumerate(detector.predict(images)):
        assert found["score"][index] == pytest.approx(prediction.score, rel=1e-4)
        assert found["defective"][index] == (prediction.decision == "defective")
        distance = np.linalg.norm(found["map"][index] - prediction.anomaly_map)
        assert distance <= 1e-4 * np.linalg.norm(prediction.anomaly_map)


def test_is_alone_and_says_what_it_is(file: Path, detector: Detector) -> None:
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert about["line"] == "tiles"
    assert float(about["threshold"]) == detector.calibration.threshold
    assert "of good parts are called defective" in about["promise"]


def test_both_decisions_occur(detector: Detector, tmp_path: Path) -> None:
    """The threshold in the file decides."""
    images = [picture(seed, (128, 128)) for seed in range(2)]
    scores = [prediction.score for prediction in detector.predict(images)]
    threshold = sum(scores) / 2
    assert max(scores) > 1.001 * min(scores), "the two images have to be told apart"
    calibration = Calibration("conformal", 0.01, None, threshold, 1.0, (0.1, 1.0), (threshold,))
    export_file(
        Detector(detector.line, detector.backbone, detector.model, calibration, {}), tmp_path / "other.onnx", images
    )
    found = run(tmp_path / "other.onnx", np.stack([np.asarray(image) for image in images]))
    assert found["defective"].tolist() == [score > threshold for score in scores]


def test_without_threshold_there_is_no_decision(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    export_file(Detector.load(make_detector("plain", calibrated=False)), tmp_path / "plain.onnx")
    found = run(tmp_path / "plain.onnx", np.zeros((1, 50, 50, 3), np.uint8))
    assert set(found) == {"score", "map"}


@pytest.mark.parametrize("size", [(64, 64), (97, 210), (640, 480), (20, 30), (1100, 1500), (124, 187), (64, 500)])
def test_sizing_is_pillows_to_the_last_bit(size: tuple[int, int], tmp_path: Path) -> None:
    features = FeatureConfig(image_size=64, scales=3)
    sides = [64, 32, 16]
    levels = [
        helper.make_tensor_value_info(f"level_{i}", TensorProto.UINT8, ["N", s, s, 3]) for i, s in enumerate(sides)
    ]
    outputs = [helper.make_tensor_value_info(f"out_{i}", TensorProto.UINT8, None) for i in range(3)]
    nodes = [helper.make_node("Identity", [f"level_{i}"], [f"out_{i}"]) for i in range(3)]
    graph = helper.make_graph(nodes, "levels", levels, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    put_sizing_in(model, features)
    onnx.save(model, tmp_path / "sizing.onnx")
    image = picture(1, size)
    found = run(tmp_path / "sizing.onnx", np.asarray(image)[None])
    for index, level in enumerate(to_pyramid_levels(image, features)):
        np.testing.assert_array_equal(found[f"out_{index}"][0], level)


def test_disagreement_is_named() -> None:
    calibration = Calibration("none", None, None, None, None, (0.1, 1.0), (1.0,))
    flat = np.ones((4, 4), np.float32)
    right = judged(2.0, flat, (8, 8), calibration)
    check_agreement([right], [judged(2.0005, flat, (8, 8), calibration)], calibration)
    with pytest.raises(ModelError, match=r"differs from the detector by 0\.005 of a score"):
        check_agreement([right], [judged(2.01, flat, (8, 8), calibration)], calibration)
    with pytest.raises(ModelError, match=r"and 0\.5 of a map"):
        check_agreement([right], [judged(2.0, 1.5 * flat, (8, 8), calibration)], calibration)
    nearly_zero = judged(0.0, flat, (8, 8), calibration)
    check_agreement([nearly_zero], [judged(5e-5, flat, (8, 8), calibration)], calibration)
    with pytest.raises(ModelError, match=r"differs from the detector by 0\.01 of a score"):
        check_agreement([nearly_zero], [judged(1e-3, flat, (8, 8), calibration)], calibration)
