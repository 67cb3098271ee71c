"""Measure one variant of an ablation: find or fit its model, judge it, and time it as it would be served."""

from __future__ import annotations

import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.ablation.held_out import held_out, paste_on
from csflow.ablation.judge import VariantJudge
from csflow.ablation.kept import read_kept, write_kept
from csflow.ablation.request import Variant
from csflow.ablation.rows import AblationRow
from csflow.ablation.timing import TIMED_IMAGES, Timing, machine, time_served
from csflow.config import DataConfig, FeatureConfig, LineConfig, RolesConfig
from csflow.errors import CsflowError
from csflow.features.weights import weights_digest
from csflow.runs.find_or_fit import find_or_fit
from csflow.runs.fitting import TRAINING, OnEpoch, images_to_fit, read_epochs
from csflow.runs.identity import detector_code
from csflow.runs.services import Services
from csflow.system.code_identity import code_version
from csflow.system.files import sha256_json

if TYPE_CHECKING:
    from csflow.adapters.versioning import CheckedOut
    from csflow.data.manifest import Manifest
    from csflow.features.backbone import Backbone
    from csflow.features.cache_manifest import CacheManifest

_JUDGING = ("csflow.ablation.judge", "csflow.ablation.held_out", "csflow.ablation.timing")
"""Modules that determine a row's figures, given the detector."""


class Bench:
    """The data that several variants share: checked-out images, the last backbone, and the graphs already timed.

    Args:
        services: The outside systems.
        retime: If True, time every graph again, even if a trustworthy time is known.
    """

    def __init__(self, services: Services, *, retime: bool = False) -> None:
        self.services, self.workspace, self.retime = services, services.workspace, retime
        self._timed: set[str] = set()
        self._materialised = lru_cache(maxsize=None)(self._materialise)
        self._backbones = lru_cache(maxsize=1)(self._load_backbone)

    def key(self, variant: Variant) -> str:
        """Digest everything that determines a row, except the machine that it is timed on: see :meth:`timed_here`."""
        lines = (variant.line, *variant.joined)
        data = [[self.images(line).digest, line.roles.model_dump(mode="json")] for line in lines]
        code = [detector_code(variant.line), code_version(*_JUDGING)]
        try:
            weights = weights_digest(variant.line.features)
        except CsflowError as error:  # measuring the variant fails with the same error, which then goes into its row
            weights = str(error)
        return sha256_json([variant.line.line, data, variant.line.method_digest(), weights, code])

    def images(self, line: LineConfig) -> Manifest:
        """Return the line's images."""
        return self._of(line)[0]

    def revision(self, line: LineConfig) -> str:
        """Return the commit of the line's data."""
        return self._of(line)[1].git_rev

    def measure(self, variant: Variant, key: str, publish: OnEpoch) -> AblationRow:
        """Fit, judge and time a variant.

        Args:
            variant: What to measure.
            key: The variant's :meth:`key`.
            publish: Receives the result of every epoch.

        Raises:
            CsflowError: Of any kind, if the variant cannot be fitted or judged.
        """
        line, manifest = variant.line, self.images(variant.line)
        backbone = self._backbones(line.features)
        images = self._to_fit(variant)
        cached = self._features(variant, backbone)
        began = time.time()
        folder = find_or_fit(line, cached, images, self.workspace.models, publish)
        seconds = _training_seconds(folder, began)
        judge = VariantJudge(line, folder, cached, manifest)
        metrics, good = judge.on_test(), held_out(manifest, images)
        if good is not None:
            defective = paste_on(good, self.workspace.ablations / ".synthetic", line.features.bit_depth)
            metrics |= judge.on_held_out(good, defective, self._extract(defective, line.features, backbone))
        return AblationRow(
            key=key,
            line=line.line,
            seed=line.training.seed,
            config=line.model_dump(mode="json"),
            git_rev=self.revision(line),
            images={"fitted": len(images), **judge.counts, "held_out": 0 if good is None else len(good)},
            metrics=metrics,
            timing=self._timing(judge, backbone),
            parameters=judge.parameters,
            training_seconds=seconds,
            test_scores=judge.test_scores,
        )

    def timed_here(self, variant: Variant, row: AblationRow) -> AblationRow:
        """Time a row again unless its time was taken on this machine while nothing else ran.

        Quality is not measured again: images, features and model are found by their content.

        Raises:
            CsflowError: Of any kind, if the variant cannot be fitted any more.
        """
        if not self.retime and row.timing is not None and self._is_trustworthy(row.timing):
            return row
        line = variant.line
        backbone = self._backbones(line.features)
        cached = self._features(variant, backbone)
        folder = find_or_fit(line, cached, self._to_fit(variant), self.workspace.models)
        judge = VariantJudge(line, folder, cached, self.images(line))
        return row.model_copy(update={"timing": self._timing(judge, backbone)})

    def _of(self, line: LineConfig) -> tuple[Manifest, CheckedOut]:
        return self._materialised(line.line, line.data, line.roles)

    def _materialise(self, name: str, data: DataConfig, roles: RolesConfig) -> tuple[Manifest, CheckedOut]:
        from csflow.runs.checkout import materialise

        return materialise(LineConfig(line=name, data=data, roles=roles, calibration="none"), self.workspace)

    def _load_backbone(self, features: FeatureConfig) -> Backbone:
        from csflow.features.backbone import load_backbone

        return load_backbone(features)

    def _to_fit(self, variant: Variant) -> list[str]:
        """Return the images that the pipeline would fit; those of joined lines sorted, so that all share a model."""
        own = images_to_fit(variant.line, self._candidates(variant.line))
        if not variant.joined:
            return own
        others = [images_to_fit(line, self._candidates(line)) for line in variant.joined]
        return sorted({sha for images in (own, *others) for sha in images})

    def _candidates(self, line: LineConfig) -> list[str]:
        return list(self.images(line).rows(role="fit").frame["sha256"])

    def _features(self, variant: Variant, backbone: Backbone) -> CacheManifest:
        """Extract the line's images, and those of joined lines that are fitted."""
        from dataclasses import replace

        features = variant.line.features
        own = self._extract(self.images(variant.line), features, backbone)
        others = [self._extract(self.images(line).rows(role="fit"), features, backbone) for line in variant.joined]
        return replace(own, entries=tuple(sorted({sha for part in (own, *others) for sha in part.entries})))

    def _extract(self, manifest: Manifest, features: FeatureConfig, backbone: Backbone) -> CacheManifest:
        from csflow.runs.stored_features import feature_store

        return feature_store(self.services).extract(manifest, features, backbone)

    def _timing(self, judge: VariantJudge, backbone: Backbone) -> Timing:
        """Return the graph's time on this machine, measured once unless the machine was busy or ``retime`` is set."""
        from csflow.data.images import read_image

        pictures = [read_image(file, judge.line.features.bit_depth) for file in judge.manifest.files[:TIMED_IMAGES]]
        code = code_version("csflow.ablation.timing")
        name = sha256_json([judge.graph, [picture.size for picture in pictures], machine(), code])
        file = self.workspace.ablations / ".timings" / f"{name}.json"
        known = read_kept(file, Timing)
        if known is not None and (name in self._timed or (not self.retime and self._is_trustworthy(known))):
            return known
        with tempfile.TemporaryDirectory() as folder:
            judge.save(backbone, Path(folder) / "detector")
            timing = time_served(Path(folder) / "detector", pictures)
        if known is not None and timing.busy and not self.retime:
            # Other processes can only make a time too long, so the shorter one is nearer to the truth.
            timing = min(known, timing, key=lambda each: each.median_ms)
        self._timed.add(name)
        write_kept(file, timing)
        return timing

    @staticmethod
    def _is_trustworthy(timing: Timing) -> bool:
        return timing.machine == machine() and not timing.busy


def _training_seconds(folder: Path, began: float) -> float | None:
    """Add up the seconds of all epochs; without epochs, only a fit that this process has just done can be timed."""
    epochs = read_epochs(folder)
    if epochs:
        return float(sum(epoch.seconds for epoch in epochs))
    finished = (folder / TRAINING).stat().st_mtime
    return finished - began if finished >= began else None
