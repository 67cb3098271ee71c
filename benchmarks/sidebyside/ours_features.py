"""Measure csflow's extraction, through ``csflow.features.store.FeatureStore`` alone."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csflow.data.images import read_image, to_pyramid_levels
from csflow.features.store import FeatureStore
from sidebyside.bench import Bench
from sidebyside.child import Channel
from sidebyside.errors import relative_error
from sidebyside.materials import Listing, feature_config, make_backbone
from sidebyside.process import seconds


class Driver:
    """Driver that extracts the images into a store of its own."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.bench = Bench(folder)
        self.features = feature_config(self.bench.settings)
        self.backbone = make_backbone(self.bench.settings).to(self.bench.settings.device)
        self.store = FeatureStore(folder / "extracted")
        self.entries: set[str] = set()

    def extract(self, images: int | None = None) -> float:
        """Measure the seconds to extract the first ``images`` (by default all), none of which is in the store."""
        for path in [path for path in self.store.root.rglob("*") if path.name in self.entries]:
            path.unlink()
        return self.again(images)

    def again(self, images: int | None = None) -> float:
        """Measure the seconds to extract the first ``images``, whatever the store has already."""
        listing = Listing(self.bench.images[:images])
        self.entries |= {row.sha256 for row in listing.rows}
        return seconds(lambda: self.store.extract(listing.manifest, self.features, self.backbone))

    def fresh(self) -> float:
        """Measure the seconds to extract everything into a store that does not exist yet."""
        shutil.rmtree(self.store.root, ignore_errors=True)
        return self.again()

    def decode(self) -> float:
        """Measure the seconds to decode and resize all images, on all threads as extraction does."""

        def work(path: Path) -> object:
            return to_pyramid_levels(read_image(path), self.features)

        with ThreadPoolExecutor(self.bench.settings.threads) as pool:
            return seconds(lambda: list(pool.map(work, self.bench.images)))

    def error(self) -> float:
        """Measure the relative error of the stored features against eager float32 timm, rounded as stored."""
        listing = Listing(self.bench.images)
        manifest = self.store.extract(listing.manifest, self.features, self.backbone)
        found = manifest.open([row.sha256 for row in listing.rows]).batch(range(len(listing.rows)))
        return relative_error(found, self.bench.pyramid("eager"))
