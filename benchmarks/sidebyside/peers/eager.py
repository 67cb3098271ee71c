"""Measure the pipeline around the authors' flow: torchvision transforms and an eager float32 timm trunk.

Their EfficientNet-B5 weights are not part of their code, so every peer gets the trunk that ours has.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.process import seconds

LOADER_BATCH = 16
"""Number of images extracted at once, as in the authors' configuration."""


class Trunk(nn.Module):
    """An uncompiled timm trunk, cut like ours, on images resized as by the authors."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        about = bench.read("trunk")
        model = timm.create_model(bench.settings.backbone, pretrained=False)
        model.load_state_dict(bench.tensors("trunk"), strict=False)
        self.conv_stem = cast(nn.Module, model.conv_stem)
        self.bn1 = cast(nn.Module, model.bn1)
        self.blocks = nn.Sequential(*list(cast(nn.Sequential, model.blocks))[: about["stage"]])
        self.size, self.scales = bench.settings.size, bench.settings.scales
        self.requires_grad_(False).eval()
        self.transform = transforms.Compose(
            [
                transforms.Resize((self.size, self.size)),
                transforms.ToTensor(),
                transforms.Normalize(about["mean"], about["std"]),
            ]
        )

    def decode(self, contents: Sequence[bytes]) -> Tensor:
        """Read and normalise images ``(B, 3, size, size)``."""
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
        return torch.stack([self.transform(picture) for picture in pictures])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one feature map a scale, finest first."""
        sides = [self.size // 2**scale for scale in range(self.scales)]
        inputs = [images, *(F.interpolate(images, size=(side, side)) for side in sides[1:])]
        return [self.blocks(self.bn1(self.conv_stem(level))) for level in inputs]


class Driver:
    """Driver that extracts features as the authors' ``extract_features.py`` does, with the eager trunk."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.bench = Bench(folder)
        self.device = torch.device(self.bench.settings.device)
        self.trunk = Trunk(self.bench).to(self.device)

    @torch.no_grad()
    def extract(self) -> float:
        """Measure the seconds from image files to features in memory."""
        maps: list[list[Tensor]] = []

        def work() -> None:
            for files in self._chunks():
                images = self.trunk.decode([path.read_bytes() for path in files])
                maps.append([level.cpu() for level in self.trunk(images.to(self.device))])

        elapsed = seconds(work)
        self.bench.save_pyramid("eager", [torch.cat(level).half() for level in zip(*maps, strict=True)])
        return elapsed

    def decode(self) -> float:
        """Measure the seconds to decode and resize all images, in one process as the authors' loader does."""
        return seconds(lambda: [self.trunk.decode([path.read_bytes() for path in f]) for f in self._chunks()])

    def flops(self) -> int:
        """Count the FLOPs of the trunk on one image at all scales."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.trunk(torch.zeros(1, 3, self.trunk.size, self.trunk.size, device=self.device))
        return int(counter.get_total_flops())

    def _chunks(self) -> list[list[Path]]:
        files = self.bench.images
        return [files[start : start + LOADER_BATCH] for start in range(0, len(files), LOADER_BATCH)]
