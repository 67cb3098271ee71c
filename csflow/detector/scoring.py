"""Turn a flow's latents into anomaly scores and anomaly maps, in torch.

Everything after that (p-values, boxes, heat-maps) needs no torch and has files of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from csflow.config import ScoringConfig
from csflow.flow.pyramid import Pyramid


def anomaly_score(latents: Pyramid) -> Tensor:
    r"""Score images by their latents; higher is more anomalous.

    .. math:: \frac{1}{D} \sum_i \sum_{c,h,w} \tfrac12 z_{i,c,h,w}^2

    Args:
        latents: Latents of the flow, level ``i`` is ``(B, C, H / 2**i, W / 2**i)``; D counts all of an image's.

    Returns:
        Scores ``(B,)`` in float32, nats per latent dimension up to a constant. About 0.5 for images
        like the training images.

    Reference:
        The authors' code of CS-Flow (Rudolph et al., WACV 2022): mean of ``z ** 2 / 2`` over all latents.
    """
    per_level = [level.float().square().flatten(1).sum(dim=1) for level in latents]
    dimensions = sum(level[0].numel() for level in latents)
    return torch.stack(per_level).sum(dim=0) / (2 * dimensions)


def scored(latents: Pyramid, log_det: Tensor, scoring: ScoringConfig) -> tuple[Tensor, Tensor]:
    r"""Score images by their latents and localise anomalies, in the variants a line can choose.

    ``mean`` is :func:`anomaly_score`; ``nll`` the exact negative log-likelihood a dimension, which counts ``log_det``;
    ``max`` the largest value of the map, halved and per channel so that it has the same unit. The map ``finest`` is
    :func:`anomaly_map`; ``all`` is the mean over the scales of their maps, enlarged bilinearly to the finest.

    Args:
        latents: Latents of the flow, finest first.
        log_det: Log-determinants of the flow, ``(B,)`` in nats.
        scoring: Names the variants.

    Returns:
        Scores ``(B,)`` and maps ``(B, h, w)``, both in float32.

    Reference:
        Rudolph et al., WACV 2022, Eq. 6 and 8.
    """
    chosen = latents[:1] if scoring.map == "finest" else latents
    size = (int(latents[0].shape[2]), int(latents[0].shape[3]))
    maps = anomaly_map(chosen[:1])
    for level in chosen[1:]:
        maps = maps + anomaly_map([level], size)
    maps = maps[:, 0] / len(chosen)
    if scoring.score == "max":
        return maps.flatten(1).amax(dim=1) / (2 * latents[0].shape[1]), maps
    score = anomaly_score(latents)
    if scoring.score == "nll":
        dimensions = sum(level[0].numel() for level in latents)
        score = score + 0.5 * math.log(2 * math.pi) - log_det / dimensions
    return score, maps


def anomaly_map(latents: Pyramid, size: tuple[int, int] | None = None) -> Tensor:
    r"""Localise anomalies: squared norm over the channels of the finest latent.

    Args:
        latents: Latents of the flow, finest first.
        size: Height and width to upsample to (bilinear); None keeps the size of the finest latent.

    Returns:
        Maps ``(B, 1, H, W)`` in float32.

    Reference:
        Rudolph et al., WACV 2022, Eq. 8 and Fig. 5: only the finest scale is used.
    """
    maps = latents[0].float().square().sum(dim=1, keepdim=True)
    return maps if size is None else interpolate(maps, size=size, mode="bilinear", align_corners=False)
