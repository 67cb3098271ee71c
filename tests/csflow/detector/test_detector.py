"""Detector directories: half-precision weights, the graph beside them, and older directories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from csflow.config import FlowConfig
from csflow.detector.detector import Detector
from csflow.detector.fitting import load_model
from csflow.detector.model import round_to_stored, save_model
from csflow.errors import ModelError
from csflow.flow.cross_scale import CrossScaleFlow

SHAPE = FlowConfig(blocks=2, hidden=16)
SHAPES = ((192, 4, 4), (192, 2, 2), (192, 1, 1))


@pytest.fixture
def flow() -> CrossScaleFlow:
    torch.manual_seed(0)
    flow = CrossScaleFlow(SHAPE, channels=24, scales=3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    flow.set_standardization(torch.randn(3, 24), torch.rand(3, 24) + 0.5)
    return flow


@pytest.fixture
def directory(make_detector: Callable[..., Path]) -> Path:
    return make_detector("tiles")


def scores(flow: CrossScaleFlow) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        latents, _ = flow.eval()([torch.randn(5, 24, 8 >> i, 8 >> i) for i in range(3)])
    return torch.stack([level.square().flatten(1).sum(dim=1) for level in latents]).sum(dim=0)


class TestHalfPrecision:
    def test_a_rounded_flow_is_what_its_file_holds(self, flow: CrossScaleFlow, tmp_path: Path) -> None:
        round_to_stored(flow)
        save_model(flow, tmp_path / "model.safetensors")
        fresh = CrossScaleFlow(SHAPE, channels=24, scales=3, permutation_seed=5)
        fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for name, tensor in flow.state_dict().items():
            assert fresh.state_dict()[name].dtype == tensor.dtype
            assert torch.equal(fresh.state_dict()[name], tensor), name

    def test_rounding_hardly_changes_a_score(self, flow: CrossScaleFlow) -> None:
        before = scores(flow)
        round_to_stored(flow)
        after = scores(flow)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, before, rtol=1e-3, atol=0)

    def test_takes_half_the_bytes(self, flow: CrossScaleFlow, tmp_path: Path) -> None:
        save_model(flow, tmp_path / "half")
        stored = load_file(tmp_path / "half")
        full = sum(tensor.nbytes for tensor in flow.state_dict().values())
        assert sum(tensor.nbytes for tensor in stored.values()) <= 0.5 * full
        assert stored["feature_mean"].dtype == torch.float32

    @pytest.mark.parametrize("value", [1e6, float("nan")])
    def test_a_weight_beyond_half_precision(self, flow: CrossScaleFlow, tmp_path: Path, value: float) -> None:
        with torch.no_grad():
            max(flow.parameters(), key=Tensor.numel).view(-1)[3] = value
        with pytest.raises(ModelError, match="not finite in half precision"):
            round_to_stored(flow)
        with pytest.raises(ModelError, match="not finite in half precision"):
            save_model(flow, tmp_path / "model.safetensors")


def test_format_1_is_still_read(directory: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(directory, tmp_path / "old"))
    (old / "graph.onnx").unlink()
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
    (newer / "config.json").write_text(json.dumps(config | {"format": 4}))
    with pytest.raises(ModelError, match="has format 4, expected one of 1, 2, 3"):
        Detector.load(newer)


def test_saving_again_changes_no_weight(directory: Path, tmp_path: Path) -> None:
    Detector.load(directory).save(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "calibration.json"):
        assert (tmp_path / "again" / name).read_bytes() == (directory / name).read_bytes(), name


def test_a_graph_that_disagrees_is_refused(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter leaves out a part of the network; nothing is written then."""
    from csflow.detector import graph

    judge = graph._Scorer.forward

    def another(self: graph._Scorer, *levels: Tensor) -> tuple[Tensor, Tensor]:
        scores, maps = judge(self, *levels)
        return 1.01 * scores, maps

    monkeypatch.setattr(graph._Scorer, "forward", another)
    with pytest.raises(ModelError, match="differs from the detector by"):
        Detector.load(directory).save(tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


def test_load_model_names_what_is_wrong(directory: Path, tmp_path: Path) -> None:
    line = Detector.load(directory).line
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "model.safetensors", line, SHAPES)
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_model(directory / "backbone.safetensors", line, SHAPES)
