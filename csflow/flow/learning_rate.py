"""The learning rate of every training step."""

from __future__ import annotations

import math

from csflow.config import TrainingConfig

WARM_UP = 0.05  # of all steps, with the cosine schedule


def learning_rate_at(done: int, steps: int, training: TrainingConfig) -> float:
    r"""Return the learning rate of a step, which depends on the step's index alone, so that a run can be resumed.

    .. math:: \eta_k = \tfrac{\eta}{2} \left(1 + \cos \pi \tfrac{k - w}{n - w}\right) \; (k \ge w), \quad
              \eta_k = \eta \tfrac{k + 1}{w + 1} \; (k < w)

    Args:
        done: Steps done before it, ``k``.
        steps: Steps of the whole run, ``n``.
        training: Names the schedule and the highest rate.

    Reference:
        Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts; linear warm-up over the first ``WARM_UP`` of steps.
    """
    if training.schedule == "constant":
        return training.learning_rate
    warm = int(WARM_UP * steps)
    if done < warm:
        return training.learning_rate * (done + 1) / (warm + 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (steps - warm)))
