"""Detector directories: the graph next to the weights, and directories of older formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from csflow.detector.detector import Detector
from csflow.errors import ModelError


@pytest.fixture
def directory(make_detector: Callable[..., Path]) -> Path:
    return make_detector("tiles")


def test_format_1_is_still_read(directory: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(directory, tmp_path / "old"))
    for name in ("model.onnx", "backbone.onnx"):
        (old / name).unlink()
    state = {
        name.removeprefix("flow."): tensor.long() if "permutation" in name else tensor.float()
        for name, tensor in load_file(old / "model.safetensors").items()
    }
    save_file(state, old / "model.safetensors")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"format": 1}))
    image = Image.linear_gradient("L").convert("RGB")
    (expected,), (found,) = (Detector.load(folder).predict([image]) for folder in (directory, old))
    assert found.score == expected.score
    assert found.decision == expected.decision


def test_whoever_serves_it_may_read_every_file(directory: Path) -> None:
    unreadable = [file.name for file in directory.iterdir() if file.stat().st_mode & 0o444 != 0o444]
    assert unreadable == [], "KServe's server runs as a user of its own"


def test_an_unknown_format_is_refused(directory: Path, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(directory, tmp_path / "newer"))
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(config | {"format": 5}))
    with pytest.raises(ModelError, match="has format 5, expected one of 1, 2, 3, 4"):
        Detector.load(newer)


def test_saving_again_changes_no_weight(directory: Path, tmp_path: Path) -> None:
    Detector.load(directory).save(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "calibration.json"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name


def test_a_graph_that_disagrees_is_refused(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter leaves out a part of the network; nothing is written then."""
    from csflow.detector import graph

    judge = graph._FlatModel.forward

    def another(self: graph._FlatModel, features: Tensor) -> tuple[Tensor, Tensor]:
        scores, maps = judge(self, features)
        return 1.01 * scores, maps

    monkeypatch.setattr(graph._FlatModel, "forward", another)
    with pytest.raises(ModelError, match="differs from the detector by"):
        Detector.load(directory).save(tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []
