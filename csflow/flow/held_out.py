"""Measure, while a flow is trained, how likely it finds good images that it is not trained on.

The likelihood of the training images rises for as long as one trains; that of held-out ones stops rising when the flow
begins to learn single images by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from csflow.flow.device import Features, Feed, feed_device
from csflow.flow.training_run import TrainingRun

MEASUREMENTS = 20
"""About how often the likelihood is measured in a training; each time costs one forward pass."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of one training.

    Attributes:
        feed: Gives their features.
        images: Number of images.
    """

    feed: Feed
    images: int

    @classmethod
    def on(cls, device: torch.device, features: Features | None) -> HeldOut | None:
        """Make the features of held-out images ready on a device; None if there are none."""
        if features is None or not len(features):
            return None
        return cls(feed_device(features, device), len(features))

    def is_due(self, epoch: int, epochs: int) -> bool:
        """Return True after the first and the last epoch, and after some in between at equal distances."""
        return epoch in (1, epochs) or epoch % -(-epochs // MEASUREMENTS) == 0

    @torch.no_grad()
    def nll(self, run: TrainingRun) -> float:
        """Return the mean negative log-likelihood a dimension in nats, with the weights of the last step.

        Neither weights nor random generators change, so the training goes on as if nothing had been measured.
        """
        run.flow.eval()
        total, size = 0.0, run.training.batch_size
        for start in range(0, self.images, size):
            batch = range(start, min(start + size, self.images))
            with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.precision == "bfloat16"):
                latents, log_det = run.flow(self.feed(batch))
            nll = run.flow.negative_log_likelihood(latents, log_det)
            total += run.flow.per_dimension(nll, latents).sum().item()
        return total / self.images
