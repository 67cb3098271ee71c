"""Scores and maps of latents."""

from __future__ import annotations

import pytest
import torch

from csflow.detector.scoring import anomaly_map, anomaly_score


@pytest.fixture
def latents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, side, side, generator=generator) for side in (8, 4, 2)]


def test_the_score_is_the_mean_of_half_the_square_over_all_latents(latents: list[torch.Tensor]) -> None:
    flat = torch.cat([level.flatten(1) for level in latents], dim=1)
    torch.testing.assert_close(anomaly_score(latents), (flat**2 / 2).mean(dim=1))


def test_score_and_map_of_an_image_ignore_the_rest_of_the_batch(latents: list[torch.Tensor]) -> None:
    alone = [level[1:2] for level in latents]
    torch.testing.assert_close(anomaly_score(alone)[0], anomaly_score(latents)[1])
    torch.testing.assert_close(anomaly_map(alone)[0], anomaly_map(latents)[1])


def test_half_precision_latents_are_summed_in_float32() -> None:
    latents = [torch.full((1, 64, 32, 32), 8.0, dtype=torch.float16)]
    assert anomaly_score(latents).item() == 32.0
    assert anomaly_map(latents).max().item() == 4096.0


def test_the_map_is_the_squared_norm_of_the_finest_level(latents: list[torch.Tensor]) -> None:
    plain = anomaly_map(latents)
    assert plain.shape == (3, 1, 8, 8)
    torch.testing.assert_close(plain[:, 0], torch.linalg.vector_norm(latents[0], dim=1) ** 2)
    assert anomaly_map(latents, (33, 20)).shape == (3, 1, 33, 20)
