"""Statistics of every feature channel, by which the flow standardises its input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from csflow.flow.device import Features
from csflow.flow.pyramid import Pyramid

STD_FLOOR = 0.01  # of the scale's root mean square deviation: a dead channel must not become an alarm


def channel_statistics(
    features: Features, *, arrange: Callable[[Pyramid], Pyramid] = list, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of every scale and channel over all images and pixels.

    Args:
        features: Of the images.
        arrange: What the flow does with a pyramid first.
        batch_size: Images read together.

    Returns:
        Two ``(scales, C)`` tensors in float64; deviations are at least ``STD_FLOOR`` of the scale's root mean square.
    """
    sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    squares: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
    counts: dict[int, int] = defaultdict(int)
    for start in range(0, len(features), batch_size):
        batch = features.batch(range(start, min(start + batch_size, len(features))))
        for i, level in enumerate(arrange(batch)):
            values = level.double()
            sums[i] = sums[i] + values.sum(dim=(0, 2, 3))
            squares[i] = squares[i] + values.square().sum(dim=(0, 2, 3))
            counts[i] += values.shape[0] * values.shape[2] * values.shape[3]
    count = torch.tensor(list(counts.values()), dtype=torch.float64)[:, None]
    mean = torch.stack(list(sums.values())) / count
    variance = (torch.stack(list(squares.values())) / count - mean.square()).clamp(min=0.0)
    typical = variance.mean(dim=1, keepdim=True).sqrt()
    floor = torch.where(typical > 0, STD_FLOOR * typical, 1.0)
    return mean, variance.sqrt().maximum(floor)
