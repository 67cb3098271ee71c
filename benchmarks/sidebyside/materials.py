"""Make the materials of every implementation: images, trunk, features, weights, a detector, and correct results."""

from __future__ import annotations

import hashlib
import json
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from csflow.config import FeatureConfig, FlowConfig
from csflow.features.backbone import Backbone, load_backbone, trunk_state
from csflow.features.cache_manifest import CacheManifest
from csflow.features.store import FeatureStore
from csflow.features.weights import PACKAGE, PACKAGE_BACKBONE
from csflow.flow.cross_scale import CrossScaleFlow
from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.images import draw_images, find_images
from sidebyside.plain import plain_flow, training_flops
from sidebyside.settings import Settings

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

STAGE = 6
REFERENCE_IMAGES = 2
"""Images of the float64 reference; few, because float64 is slow and the latents of an image do not depend on others."""

_Row = namedtuple("_Row", ["path", "sha256"])


def feature_config(settings: Settings) -> FeatureConfig:
    """Return the preprocessing of the authors' code, so that all implementations compute the same."""
    return FeatureConfig(
        backbone=settings.backbone,
        stage=STAGE,
        image_size=settings.size,
        scales=settings.scales,
        downscale="nearest",
    )


def make_backbone(settings: Settings) -> Backbone:
    """Load real weights if a package has them, else random ones with settled batch norms."""
    features = feature_config(settings)
    if settings.backbone == PACKAGE_BACKBONE and util.find_spec(PACKAGE):
        return load_backbone(features)
    import timm

    torch.manual_seed(settings.seed)
    model = timm.create_model(settings.backbone, pretrained=False)
    _settle(model, settings.size)
    about = cast("Mapping[str, Any]", model.pretrained_cfg)
    return Backbone(model, name=settings.backbone, stages=(STAGE,), mean=tuple(about["mean"]), std=tuple(about["std"]))


def start_flow(settings: Settings, channels: int) -> CrossScaleFlow:
    """Make the flow from which a training with this seed starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return CrossScaleFlow(
            FlowConfig(hidden=settings.width, standardize=False), channels=channels, scales=settings.scales
        )


class Listing:
    """A substitute for a manifest with the two columns that extraction reads, without pandas."""

    def __init__(self, files: list[Path]) -> None:
        self.root = Path("/")
        self.rows = [_Row(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

    @property
    def frame(self) -> Self:
        """Return the table, which is this object itself."""
        return self

    def __getitem__(self, columns: list[str]) -> Self:
        """Return the names of the columns."""
        return self

    def itertuples(self, index: bool = False) -> Iterator[Any]:
        """Return one row an image."""
        return iter(self.rows)

    @property
    def manifest(self) -> Manifest:
        """Return this object as the type that extraction declares."""
        return cast("Manifest", self)


@dataclass
class Driver:
    """Driver that makes materials, one call each, in the order of the methods."""

    folder: Path
    channel: Channel

    def __post_init__(self) -> None:
        self.bench = Bench(self.folder)

    def images(self) -> None:
        """Find or draw the images, and make copies with other content for the works that need new images."""
        settings = self.bench.settings
        if settings.folder:
            files = find_images(Path(settings.folder), settings.images)
        else:
            files = draw_images(self.folder / "images", settings.images, settings.seed)
        (self.folder / "images.json").write_text(json.dumps([str(path) for path in files]))

    def features(self) -> dict[str, Any]:
        """Make the trunk, the stored features of all images, and the same standardised, in memory."""
        bench, settings = self.bench, self.bench.settings
        backbone = make_backbone(settings)
        bench.save_tensors("trunk", trunk_state(backbone))
        bench.save("trunk", {"mean": backbone.mean, "std": backbone.std, "stage": STAGE, "channels": backbone.channels})
        listing = Listing(bench.images)
        cached = FeatureStore(bench.store).extract(
            listing.manifest, feature_config(settings), backbone.to(settings.device)
        )
        cached.save(self.folder / "features.json")
        levels = cached.open([row.sha256 for row in listing.rows]).batch(range(len(listing.rows)))
        scale = [_statistics(level) for level in levels]
        bench.save_tensors(
            "scale", {"mean": torch.stack([m for m, _ in scale]), "std": torch.stack([s for _, s in scale])}
        )
        standardised = [
            (level - mean[:, None, None]) / std[:, None, None] for level, (mean, std) in zip(levels, scale, strict=True)
        ]
        bench.save_pyramid("features", standardised)
        return {"shapes": cached.shapes}

    def weights(self) -> dict[str, float]:
        """Make two sets of weights, as training starts and with non-zero gammas, and the correct latents."""
        bench, settings = self.bench, self.bench.settings
        flow = start_flow(settings, bench.read("trunk")["channels"])
        bench.save_tensors("start", flow.state_dict())
        torch.manual_seed(settings.seed + 1)
        with torch.no_grad():
            for name, parameter in flow.named_parameters():
                if name.endswith("gamma"):
                    parameter.uniform_(0.5, 1.0)
        state = flow.state_dict()
        bench.save_tensors("flow", state)
        features = bench.pyramid("features")
        with torch.inference_mode():
            exact = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
            latents, _ = plain_flow(exact, [level[:REFERENCE_IMAGES].double() for level in features])
        bench.save_pyramid("latents", latents)
        shapes = [(settings.batch, *level.shape[1:]) for level in features]
        return {"parameters": sum(p.numel() for p in flow.parameters()), "step_flops": training_flops(state, shapes)}

    def detector(self) -> None:
        """Make a detector directory and its correct answers."""
        from sidebyside.detector import line_of, make_detector

        make_detector(
            self.bench, make_backbone(self.bench.settings), line_of(self.bench, feature_config(self.bench.settings))
        )


def _statistics(level: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation ``(C,)`` of every channel; a dead channel keeps its scale."""
    values = level.double().transpose(0, 1).flatten(1)
    std = values.std(dim=1)
    return values.mean(dim=1).float(), std.clamp(min=0.01 * float(std.square().mean().sqrt())).float()


@torch.no_grad()
def _settle(model: nn.Module, size: int) -> None:
    """Make random weights give features of ordinary size: batch norms take the statistics of noise."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    model(torch.randn(4, 3, min(size, 128), min(size, 128)))
    model.eval()


def stored(bench: Bench) -> CacheManifest:
    """Return the features extracted for this run."""
    return CacheManifest.load(bench.folder / "features.json")
