"""The flow against an oracle written from the formulas, the autograd Jacobian and numbers from the authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn

from csflow.config import FlowConfig
from csflow.errors import ModelError
from csflow.flow.coupling import CouplingBlock, soft_clamp
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.pyramid import Pyramid, latent_count


def awake_flow(*, channels: int = 5, scales: int = 3, seed: int = 0) -> CrossScaleFlow:
    """A float64 flow whose gammas are not zero: a fresh coupling is the identity and would hide every mistake."""
    torch.manual_seed(seed)
    config = FlowConfig(blocks=2, hidden=4)
    flow = CrossScaleFlow(config, channels=channels, scales=scales, permutation_seed=seed).double()
    for name, parameter in flow.named_parameters():
        nn.init.normal_(parameter, std=1.0 if name.endswith("gamma") else 0.3)
    return flow


def random_pyramid(*, batch: int = 2, channels: int = 5, scales: int = 3, height: int = 4, width: int = 8) -> Pyramid:
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, channels, height >> i, width >> i) for i in range(scales)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def oracle(flow: CrossScaleFlow, pyramid: Pyramid) -> tuple[Pyramid, Tensor]:
    """Section 3.2 of the paper in the order of the authors' code, scale by scale, from the state dict alone."""
    state = flow.state_dict()
    mean, std = state["feature_mean"], state["feature_std"]
    levels = [(y - mean[i].reshape(1, -1, 1, 1)) / std[i].reshape(1, -1, 1, 1) for i, y in enumerate(pyramid)]
    log_det = torch.zeros(len(levels[0]), dtype=torch.float64)
    for i, y in enumerate(levels):
        log_det -= y.shape[2] * y.shape[3] * std[i].log().sum()

    def subnet(prefix: str, inputs: Pyramid) -> Pyramid:
        def convolve(name: str, x: Tensor, stride: int = 1) -> Tensor:
            weight = state[f"{prefix}.{name}.weight"]
            return F.conv2d(x, weight, state[f"{prefix}.{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

        hidden = []
        for i, x in enumerate(inputs):
            linear = convolve(f"inner.{i}", x)
            hidden.append(torch.where(linear > 0, linear, 0.1 * linear))
        outputs = []
        for i in range(len(inputs)):
            total = convolve(f"own.{i}", hidden[i])
            if i > 0:
                total = total + convolve(f"down.{i - 1}", hidden[i - 1], stride=2)
            if i + 1 < len(inputs):
                total = total + convolve(f"up.{i}", double_bilinearly(hidden[i + 1]))
            outputs.append(state[f"{prefix}.gamma"][i] * total)
        return outputs

    for k in range(flow.config.blocks):
        levels = [y[:, state[f"blocks.{k}.permutation"][i]] for i, y in enumerate(levels)]
        cut = flow.channels // 2
        first, second = [y[:, :cut] for y in levels], [y[:, cut:] for y in levels]
        for driver, driven, half in ((second, first, 2), (first, second, 1)):
            for i, h in enumerate(subnet(f"blocks.{k}.subnet_{half}", driver)):
                raw, shift = h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]
                log_s = 0.636 * 3.0 * torch.arctan(raw / 3.0)
                driven[i] = torch.exp(log_s) * driven[i] + shift
                log_det += log_s.sum(dim=(1, 2, 3))
        levels = [torch.cat([a, b], dim=1).clamp(-1e6, 1e6) for a, b in zip(first, second, strict=True)]
    return levels, log_det


def double_bilinearly(x: Tensor) -> Tensor:
    """Twice the size, align_corners=False: neighbours mixed 3:1 along each axis, borders repeated."""
    for axis in (2, 3):
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
        after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
        pairs = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim=axis + 1)
        x = pairs.flatten(axis, axis + 1)
    return x


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_forward_equals_the_formulas(scales: int, channels: int) -> None:
    flow = awake_flow(channels=channels, scales=scales)
    flow.set_standardization(torch.randn(scales, channels), torch.rand(scales, channels) + 0.5)
    pyramid = random_pyramid(channels=channels, scales=scales)
    latents, log_det = flow(pyramid)
    expected, expected_log_det = oracle(flow, pyramid)
    torch.testing.assert_close(latents, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scales", [1, 3])
def test_inverse_undoes_forward(scales: int) -> None:
    flow = awake_flow(scales=scales)
    flow.set_standardization(torch.randn(scales, 5), torch.rand(scales, 5) + 0.5)
    pyramid = random_pyramid(scales=scales)
    latents, _ = flow(pyramid)
    assert all((z - y).abs().max() > 0.1 for z, y in zip(latents, pyramid, strict=True))
    torch.testing.assert_close(flow.inverse(latents), pyramid, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow(flow.inverse(pyramid))[0], pyramid, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scales", [1, 3])
def test_log_det_is_that_of_the_jacobian(scales: int) -> None:
    flow = awake_flow(channels=3, scales=scales)
    flow.set_standardization(torch.randn(scales, 3), torch.rand(scales, 3) + 0.5)
    pyramid = random_pyramid(channels=3, scales=scales, height=4, width=4)
    shapes = [level.shape[1:] for level in pyramid]

    def flat_forward(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        latents, _ = flow([part.reshape(1, *shape) for part, shape in zip(parts, shapes, strict=True)])
        return torch.cat([z.flatten() for z in latents])

    _, log_det = flow(pyramid)
    for image in range(2):
        flat = torch.cat([level[image].flatten() for level in pyramid])
        jacobian = torch.autograd.functional.jacobian(flat_forward, flat)
        _, expected = torch.linalg.slogdet(jacobian)
        torch.testing.assert_close(log_det[image], expected, rtol=1e-9, atol=1e-9)


def test_at_training_size_float32_stays_close_to_the_oracle() -> None:
    """A batch large enough for tiled convolutions, which a small one does not use."""
    flow = awake_flow(channels=16)
    for name, parameter in flow.named_parameters():
        nn.init.normal_(parameter, std=0.3 if name.endswith("gamma") else 0.1)
    pyramid = random_pyramid(batch=16, channels=16, height=12, width=12)
    expected, expected_log_det = oracle(flow, pyramid)
    latents, log_det = flow.float()([level.float() for level in pyramid])
    for found, wanted in zip([*latents, log_det], [*expected, expected_log_det], strict=True):
        assert ((found.double() - wanted).norm() / wanted.norm()).item() < 1e-5


def test_nll_is_that_of_a_standard_normal() -> None:
    flow = awake_flow()
    pyramid = random_pyramid()
    latents, log_det = flow(pyramid)
    log_prior = [sum(norm.logpdf(z[b].detach().numpy()).sum() for z in latents) for b in range(2)]
    torch.testing.assert_close(flow.nll(pyramid), -(torch.tensor(log_prior) + log_det))
    count = 5 * (4 * 8 + 2 * 4 + 1 * 2)
    assert latent_count(pyramid) == count
    torch.testing.assert_close(flow.per_dimension(flow.nll(pyramid), pyramid), flow.nll(pyramid) / count)


def test_standardisation_is_a_change_of_variables() -> None:
    plain, standardised = awake_flow(), awake_flow()
    mean, std = torch.full((3, 5), 2.0), torch.full((3, 5), 0.5)
    standardised.set_standardization(mean, std)
    pyramid = random_pyramid()
    shifted = [(level - 2.0) / 0.5 for level in pyramid]
    torch.testing.assert_close(standardised(pyramid)[0], plain(shifted)[0])
    torch.testing.assert_close(
        standardised.nll(pyramid), plain.nll(shifted) + latent_count(pyramid) * math.log(0.5), rtol=1e-12, atol=0.0
    )


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    flow = awake_flow()
    pyramid = random_pyramid(batch=3)
    latents, log_det = flow(pyramid)
    changed = [level.clone() for level in pyramid]
    for level in changed:
        level[1] = 7.0
    other_latents, other_log_det = flow(changed)
    for z, other in zip(latents, other_latents, strict=True):
        torch.testing.assert_close(z[[0, 2]], other[[0, 2]])
    torch.testing.assert_close(log_det[[0, 2]], other_log_det[[0, 2]])
    assert log_det[1] != other_log_det[1]
    alone, alone_log_det = flow([level[2:] for level in pyramid])
    torch.testing.assert_close(alone[0][0], latents[0][2])
    torch.testing.assert_close(alone_log_det[0], log_det[2])


def test_state_dict_brings_its_permutations_and_standardisation() -> None:
    flow, other = awake_flow(seed=0), awake_flow(seed=7)
    flow.set_standardization(torch.randn(3, 5), torch.rand(3, 5) + 0.5)
    pyramid = random_pyramid()
    assert not torch.equal(flow.state_dict()["blocks.0.permutation"], other.state_dict()["blocks.0.permutation"])
    other.load_state_dict(flow.state_dict())
    latents, log_det = flow(pyramid)
    other_latents, other_log_det = other(pyramid)
    assert all(torch.equal(z, w) for z, w in zip(latents, other_latents, strict=True))
    assert torch.equal(log_det, other_log_det)


def test_permutations_follow_the_block_and_differ_between_scales() -> None:
    flow = CrossScaleFlow(FlowConfig(blocks=3, hidden=2), channels=6, scales=2)
    for k, block in enumerate(flow.blocks):
        assert isinstance(block, CouplingBlock)
        np.random.seed(k)
        drawn = [np.random.permutation(6) for _ in range(2)]
        np.testing.assert_array_equal(block.permutation.numpy(), drawn)


def test_fresh_flow_only_permutes() -> None:
    flow = CrossScaleFlow(FlowConfig(blocks=2, hidden=4), channels=5, scales=2).double()
    pyramid = random_pyramid(scales=2)
    latents, log_det = flow(pyramid)
    assert log_det.abs().max() == 0
    for z, y in zip(latents, pyramid, strict=True):
        torch.testing.assert_close(z.sort(dim=1).values, y.sort(dim=1).values)


def test_one_scale_has_no_cross_convolutions() -> None:
    flow = CrossScaleFlow(FlowConfig(blocks=1, hidden=4), channels=4, scales=1)
    assert not [name for name in flow.state_dict() if ".up." in name or ".down." in name]


def test_soft_clamp_stays_below_alpha_and_starts_almost_linear() -> None:
    assert soft_clamp(torch.tensor(1e9), 3.0) < 3.0
    assert soft_clamp(torch.tensor(-1e9), 3.0) > -3.0
    torch.testing.assert_close(soft_clamp(torch.tensor(1e-3), 3.0), torch.tensor(0.636e-3))


def test_far_outliers_stay_finite_and_are_cut() -> None:
    latents, log_det = awake_flow()([level * 1e30 for level in random_pyramid()])
    assert all(z.abs().max() <= 1e6 for z in latents)
    assert log_det.isfinite().all()


def test_autocast_keeps_latents_and_log_det_in_float32() -> None:
    flow = awake_flow().float()
    pyramid = [level.float() for level in random_pyramid()]
    exact, exact_log_det = flow(pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, log_det = flow(pyramid)
    assert {z.dtype for z in latents} == {torch.float32} == {log_det.dtype}
    # bfloat16 would round a log_det of this size to steps of 0.5 or more; what is left comes from the convolutions.
    torch.testing.assert_close(log_det, exact_log_det, rtol=0.02, atol=1.0)
    assert not torch.equal(latents[0], exact[0]), "autocast had no effect"


def test_half_precision_features_are_accepted() -> None:
    flow = awake_flow().float()
    pyramid = [level.half() for level in random_pyramid()]
    latents, _ = flow(pyramid)
    torch.testing.assert_close(latents, flow([level.float() for level in pyramid])[0])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 5, 4, 8), (1, 5, 2, 4)], "Expected 3 pyramid levels, got 2"),
        ([(1, 6, 4, 8), (1, 6, 2, 4), (1, 6, 1, 2)], "Expected 5 channels, got 6"),
        ([(1, 5, 4, 8), (1, 5, 2, 4), (1, 4, 1, 2)], "Expected 5 channels, got 4, 5"),
        ([(1, 5, 5, 8), (1, 5, 2, 4), (1, 5, 1, 2)], "multiple of 4"),
        ([(1, 5, 4, 8), (1, 5, 2, 4), (1, 5, 2, 2)], "exactly half"),
        ([(1, 5, 6, 8), (1, 5, 3, 4), (1, 5, 1, 2)], "multiple of 4"),
        ([(1, 5, 4, 8), (2, 5, 2, 4), (1, 5, 1, 2)], "same batch"),
        ([(1, 5, 0, 8), (1, 5, 0, 4), (1, 5, 0, 2)], "exactly half"),
        ([(5, 4, 8), (5, 2, 4), (5, 1, 2)], "shape \\(batch, channels, height, width\\)"),
    ],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_wrong_pyramids_are_named(shapes: list[tuple[int, ...]], message: str, direction: str) -> None:
    flow = awake_flow()
    with pytest.raises(ModelError, match=message):
        getattr(flow, direction)([torch.zeros(shape, dtype=torch.float64) for shape in shapes])


@pytest.mark.parametrize(("channels", "scales"), [(1, 3), (4, 0)])
def test_impossible_flows_are_refused(channels: int, scales: int) -> None:
    with pytest.raises(ModelError, match="at least 2 channels and 1 scale"):
        CrossScaleFlow(FlowConfig(blocks=1, hidden=2), channels=channels, scales=scales)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(3, 4), torch.ones(3, 4), "shape \\(3, 5\\)"),
        (torch.zeros(3, 5), torch.zeros(3, 5), "positive finite"),
        (torch.full((3, 5), math.nan), torch.ones(3, 5), "finite means"),
    ],
)
def test_impossible_standardisation_is_refused(mean: Tensor, std: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        awake_flow().set_standardization(mean, std)
