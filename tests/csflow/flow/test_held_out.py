"""The likelihood of held-out images is measured while a flow is trained, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csflow.config import FlowConfig, TrainingConfig
from csflow.flow.checkpoint import CHECKPOINT_FILE
from csflow.flow.held_out import HeldOut
from csflow.flow.pyramid import Pyramid
from csflow.flow.training import EpochResult, fit_flow

CHANNELS, SCALES = 6, 2
FLOW = FlowConfig(blocks=2, hidden=8, standardize=True)
TRAINING = TrainingConfig(epochs=3, batch_size=8, learning_rate=2e-3, device="cpu", precision="float32")


class Images:
    """Features from memory."""

    def __init__(self, count: int, seed: int) -> None:
        finest = torch.randn(count, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(seed)) + 2.0
        self.levels = [finest, torch.nn.functional.avg_pool2d(finest, 2)]

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, indices: list[int]) -> Pyramid:
        return [level[list(indices)] for level in self.levels]


def fit(
    directory: Path, held_out: Images | None, **changes: object
) -> tuple[dict[str, torch.Tensor], list[EpochResult]]:
    told: list[EpochResult] = []
    flow = fit_flow(
        Images(20, 0),
        FLOW,
        TRAINING.model_copy(update=changes),
        channels=CHANNELS,
        scales=SCALES,
        directory=directory,
        on_epoch=told.append,
        held_out=held_out,
    )
    return flow.state_dict(), told


def test_weights_and_curve_are_the_same_with_and_without(tmp_path: Path) -> None:
    state, told = fit(tmp_path / "with", Images(11, 1))
    plain, expected = fit(tmp_path / "without", None)
    assert [name for name in state if not torch.equal(state[name], plain[name])] == []
    assert [result.nll for result in told] == [result.nll for result in expected]
    assert {result.held_out_nll for result in expected} == {None}


@pytest.mark.slow
def test_the_last_value_is_the_likelihood_under_the_trained_flow(tmp_path: Path) -> None:
    """Oracle: the density of a normal vector and the Jacobian by autograd, of one image after the other in float64."""
    images = Images(11, 1)
    told: list[EpochResult] = []
    flow = fit_flow(Images(20, 0), FLOW, TRAINING, channels=CHANNELS, scales=SCALES, directory=tmp_path,
                    on_epoch=told.append, held_out=images).double()  # fmt: skip
    values = []
    for index in range(len(images)):
        levels = [level.double() for level in images.batch([index])]
        shapes, sizes = [level.shape for level in levels], [level.numel() for level in levels]

        def latents(flat: torch.Tensor, shapes: list[torch.Size] = shapes, sizes: list[int] = sizes) -> torch.Tensor:
            parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
            return torch.cat([level.flatten() for level in flow(parts)[0]])

        flat = torch.cat([level.flatten() for level in levels])
        z = latents(flat)
        _, log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(latents, flat))
        normal = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
        values.append(float(-(normal.log_prob(z).sum() + log_det) / len(z)))
    assert told[-1].held_out_nll == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_a_resumed_training_reports_the_same_values(tmp_path: Path) -> None:
    _, expected = fit(tmp_path / "whole", Images(11, 1), epochs=4)

    class Stop(Exception):
        pass

    def stop(result: EpochResult) -> None:
        if result.epoch == 3 and not result.again:
            raise Stop

    arguments = {"channels": CHANNELS, "scales": SCALES, "directory": tmp_path / "cut", "held_out": Images(11, 1)}
    training = TRAINING.model_copy(update={"epochs": 4, "checkpoint_seconds": 1e-9})
    with pytest.raises(Stop):
        fit_flow(Images(20, 0), FLOW, training, on_epoch=stop, **arguments)
    assert (tmp_path / "cut" / CHECKPOINT_FILE).exists()
    told: list[EpochResult] = []
    fit_flow(Images(20, 0), FLOW, training, on_epoch=told.append, **arguments)
    assert [result.held_out_nll for result in told] == [result.held_out_nll for result in expected]


@pytest.mark.parametrize(("epochs", "times"), [(1, 1), (3, 3), (20, 20), (21, 12), (240, 21)])
def test_it_is_measured_about_twenty_times(epochs: int, times: int) -> None:
    held_out = HeldOut(lambda indices: [], 1)
    due = [epoch for epoch in range(1, epochs + 1) if held_out.is_due(epoch, epochs)]
    assert len(due) == times
    assert due[0] == 1
    assert due[-1] == epochs
