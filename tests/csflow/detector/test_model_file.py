"""A model's file: half-precision weights, and errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from csflow.config import FlowConfig
from csflow.detector.detector import Detector
from csflow.detector.model_file import load_model, round_to_stored, save_model
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


def test_load_model_names_what_is_wrong(directory: Path, tmp_path: Path) -> None:
    line = Detector.load(directory).line
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "model.safetensors", line, SHAPES)
    with pytest.raises(ModelError, match="does not fit the configuration"):
        load_model(directory / "backbone.safetensors", line, SHAPES)
