"""Weights of the authors' code: same numbers, and a mapping page whose snippets run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csflow.errors import ModelError
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.official_weights import from_official
from csflow.flow.pyramid import Pyramid

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "official-weights.md"

# Computed by the authors' code (commit 88a13b8, float64) with the weights and features of `official_case`.
LOG_DET = [-8.74578251959931, -1.067222810964647]
SUMS = [
    [9.738474749441332, -8.646506451391401],
    [-6.392888705612318, 4.661701317646895],
    [-12.884044945725073, 0.5895729741264266],
]
CORNER = [
    [1.705567501875459, 0.8877314379760234, -0.7403034099327841, 1.8535952825298843, 0.27297079769673216],
    [-1.1663106380891692, 1.715560354193728, -1.8815331803146673, 1.452612655974228, -2.220380818128743],
    [-1.9213417696153101, -1.5786754036985569, -4.589823965206655, -1.5280092577260853, -0.9889414906975353],
]


def official_shapes(*, blocks: int = 2, halves: tuple[int, int] = (2, 3)) -> dict[str, tuple[int, ...]]:
    hidden = 3
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(blocks):
        kernel = 5 if k == blocks - 1 else 3
        for net, (read, changed) in {"s1": halves, "s2": halves[::-1]}.items():
            sizes = {f"conv_scale{i}_0": (hidden, read) for i in range(3)}
            sizes |= {f"conv_scale{i}_1": (2 * changed, hidden) for i in range(3)}
            sizes |= dict.fromkeys(["up_conv10", "up_conv21", "down_conv01", "down_conv12"], (2 * changed, hidden))
            prefix = f"module_list.{2 * k + 4}.{net}"
            shapes |= {f"{prefix}.gamma{i}": (1,) for i in range(3)}
            for name, (outputs, inputs) in sizes.items():
                shapes[f"{prefix}.{name}.weight"] = (outputs, inputs, kernel, kernel)
                shapes[f"{prefix}.{name}.bias"] = (outputs,)
    return shapes


def official_case() -> tuple[dict[str, Tensor], Pyramid]:
    random = np.random.RandomState(20)
    shapes = official_shapes()
    state = {name: torch.from_numpy(random.standard_normal(shapes[name])) * 0.3 for name in sorted(shapes)}
    pyramid = [torch.from_numpy(random.standard_normal((2, 5, 4 >> i, 8 >> i))) for i in range(3)]
    return state, pyramid


def assert_official_numbers(flow: CrossScaleFlow, pyramid: Pyramid) -> None:
    flow = flow.double()
    latents, log_det = flow(pyramid)
    torch.testing.assert_close(log_det.tolist(), LOG_DET, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([z.sum(dim=(1, 2, 3)).tolist() for z in latents], SUMS, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([z[0, :, 0, 0].tolist() for z in latents], CORNER, rtol=1e-5, atol=1e-5)


def test_numbers_of_the_authors_code() -> None:
    state, pyramid = official_case()
    assert_official_numbers(from_official(state), pyramid)


def test_snippets_of_the_page_run_and_agree() -> None:
    state, pyramid = official_case()
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        names: dict[str, object] = {"state": state}
        exec(snippet, names)
        flow = names["flow"]
        assert isinstance(flow, CrossScaleFlow)
        assert_official_numbers(flow, pyramid)


@pytest.mark.parametrize("blocks", [1, 3])
def test_shape_is_read_off_the_tensors(blocks: int) -> None:
    state = {name: torch.zeros(shape) for name, shape in official_shapes(blocks=blocks, halves=(4, 4)).items()}
    flow = from_official(state)
    assert (flow.channels, flow.scales, flow.config.blocks, flow.config.hidden) == (8, 3, blocks, 3)
    assert flow.config.kernels == (3,) * (blocks - 1) + (5,)


def test_missing_and_unexpected_tensors_are_named() -> None:
    state, _ = official_case()
    without = {name: value for name, value in state.items() if name != "module_list.6.s2.up_conv21.bias"}
    with pytest.raises(ModelError, match=r"missing module_list\.6\.s2\.up_conv21\.bias \(1\); unexpected nothing"):
        from_official(without)
    with pytest.raises(ModelError, match=r"unexpected extra \(1\)"):
        from_official(state | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match="missing"):
        from_official({})
    with pytest.raises(ModelError, match="contradict"):
        from_official(state | {"module_list.6.s2.up_conv21.bias": torch.zeros(9)})
