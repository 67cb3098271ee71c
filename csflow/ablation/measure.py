"""Measure one variant of an ablation: fit it or find it, judge it, have it timed as it would be served."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csflow.ablation.request import Variant
from csflow.ablation.timing import machine, time_served
from csflow.ablation.tradeoff import Row, Timing
from csflow.config import DataConfig, FeatureConfig, LineConfig, RolesConfig
from csflow.errors import CsflowError
from csflow.features.weights import weights_digest
from csflow.metrics import Measured
from csflow.runs.context import DETECTOR_CODE, code_version
from csflow.runs.find_or_fit import find_or_fit
from csflow.runs.fitting import OnEpoch, images_to_fit
from csflow.system.files import new_directory, sha256_file, sha256_json, write_json
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.versioning import CheckedOut
    from csflow.data.manifest import Manifest
    from csflow.detector.model import Model
    from csflow.features.backbone import Backbone
    from csflow.features.store import CacheManifest

HELD_OUT_MOST = 256
"""Most held-out images that get a synthetic defect: enough to order detectors, and cheap."""

DEFECT_SEED = 0
"""Of the synthetic defects: the same for every variant."""

TIMED_IMAGES = 8
"""Different images taken in turn."""

_JUDGING = ("synthetic/paste", "synthetic/noise", "metrics/image", "metrics/intervals",
            "metrics/pixel", "metrics/pixel_counts", "metrics/ranking", "metrics/evaluation",
            "ablation/measure", "ablation/timing")  # fmt: skip


class Bench:
    """What several variants share: checked-out images, the trunk used last, and which graphs were timed just now.

    Args:
        workspace: Whose stores are used.
        retime: Whether to time every graph again, even where there is a time that can be trusted.
    """

    def __init__(self, workspace: Workspace, *, retime: bool = False) -> None:
        self.workspace, self.retime = workspace, retime
        self._timed: set[str] = set()
        self._materialised = lru_cache(maxsize=None)(self._materialise)
        self._backbones = lru_cache(maxsize=1)(self._load_backbone)

    def key(self, variant: Variant) -> str:
        """Digest of everything a row depends on, but for the machine that took the time: see :meth:`timed_here`."""
        lines = (variant.line, *variant.joined)
        data = [[self.images(line).digest, line.roles.model_dump(mode="json")] for line in lines]
        code = code_version(*DETECTOR_CODE, *_JUDGING)
        try:
            weights = weights_digest(variant.line.features)
        except CsflowError as error:  # fails again when it is measured, and is then told in its row
            weights = str(error)
        return sha256_json([variant.line.line, data, variant.line.method_digest(), weights, code])

    def images(self, line: LineConfig) -> Manifest:
        """The line's images."""
        return self._of(line)[0]

    def revision(self, line: LineConfig) -> str:
        """Commit of the line's data."""
        return self._of(line)[1].git_rev

    def measure(self, variant: Variant, key: str, publish: OnEpoch) -> Row:
        """Fit, judge and time a variant.

        Args:
            variant: What to measure.
            key: From :meth:`key`.
            publish: Told every epoch.

        Raises:
            CsflowError: Of any kind, if the variant cannot be made or judged.
        """
        line, manifest = variant.line, self.images(variant.line)
        backbone = self._backbones(line.features)
        images = self._to_fit(variant)
        cached = self._features(variant, backbone)
        began = time.time()
        folder, judge = self._fitted(variant, cached, images, publish)
        seconds = _training_seconds(folder, began)
        pasted = self._synthetic(manifest, set(images))
        return Row(
            key=key,
            line=line.line,
            seed=line.training.seed,
            config=line.model_dump(mode="json"),
            git_rev=self.revision(line),
            images={"fitted": len(images), **judge.counts, "held_out": 0 if pasted is None else len(pasted[0])},
            metrics=judge.on_test() | ({} if pasted is None else self._on_held_out(judge, backbone, *pasted)),
            timing=self._timing(judge, backbone),
            parameters=judge.parameters,
            training_seconds=seconds,
            test_scores=judge.test_scores,
        )

    def timed_here(self, variant: Variant, row: Row) -> Row:
        """The row with a time of this machine, taken while nothing else ran if that can be had.

        Quality is not measured again: images, features and model are found by their content.

        Raises:
            CsflowError: Of any kind, if the variant cannot be made any more.
        """
        if not self.retime and row.timing is not None and self._holds(row.timing):
            return row
        backbone = self._backbones(variant.line.features)
        cached = self._features(variant, backbone)
        _, judge = self._fitted(variant, cached, self._to_fit(variant), lambda _: None)
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
        """As the pipeline fits them; of several lines in one order, whichever of them is judged."""
        own = images_to_fit(variant.line, _of_role(self.images(variant.line), "fit"))
        if not variant.joined:
            return own
        others = [images_to_fit(line, _of_role(self.images(line), "fit")) for line in variant.joined]
        return sorted({sha for images in (own, *others) for sha in images})

    def _fitted(
        self, variant: Variant, cached: CacheManifest, images: list[str], publish: OnEpoch
    ) -> tuple[Path, _Judge]:
        """Folder of the variant's model, found or fitted, and what judges it."""
        folder = find_or_fit(variant.line, cached, images, self.workspace.models, publish)
        return folder, _Judge(variant.line, folder, cached, self.images(variant.line))

    def _features(self, variant: Variant, backbone: Backbone) -> CacheManifest:
        """Features of the line's images, and of those fitted along."""
        from dataclasses import replace

        from csflow.runs.stored_features import feature_store

        store = feature_store(self.workspace)
        own = store.extract(self.images(variant.line), variant.line.features, backbone)
        others = [
            store.extract(self.images(line).rows(role="fit"), variant.line.features, backbone)
            for line in variant.joined
        ]
        return replace(own, entries=tuple(sorted({sha for part in (own, *others) for sha in part.entries})))

    def _synthetic(self, manifest: Manifest, fitted: set[str]) -> tuple[Manifest, Manifest] | None:
        """Good images that are held out and were not fitted, and the same with defects pasted on."""
        held_out = manifest.frame[manifest.frame["role"].isin(["calibrate", "gate"])]
        chosen = held_out[~held_out["sha256"].isin(fitted)].sort_values("sha256").drop_duplicates("sha256")
        if not len(chosen):
            return None
        good = type(manifest)(chosen.head(HELD_OUT_MOST).reset_index(drop=True), manifest.root)
        return good, paste_on(good, self.workspace.ablations / ".synthetic")

    def _on_held_out(
        self, judge: _Judge, backbone: Backbone, good: Manifest, defective: Manifest
    ) -> dict[str, Measured]:
        """What good images alone tell: how likely they are, and how far those with a drawn defect stand apart."""
        from csflow.metrics import image_metrics
        from csflow.runs.stored_features import feature_store

        features = feature_store(self.workspace).extract(defective, judge.line.features, backbone)
        found, _ = judge.scores(features, list(defective.frame["sha256"]))
        clean, _ = judge.scores(judge.cached, list(good.frame["sha256"]))
        labels = np.repeat([False, True], [len(clean), len(found)])
        synthetic = image_metrics(np.concatenate([clean, found]), labels)["image_auroc"]
        nll = judge.nll(list(good.frame["sha256"]))
        return {"synthetic_auroc": synthetic} | ({} if nll is None else {"held_out_nll": nll})

    def _timing(self, judge: _Judge, backbone: Backbone) -> Timing:
        """Of the graph on this machine; kept, unless others kept the machine busy or it is asked for anew."""
        from csflow.data.images import read_image

        pictures = [read_image(file) for file in judge.manifest.files[:TIMED_IMAGES]]
        code = code_version("ablation/timing")
        name = sha256_json([judge.graph, [picture.size for picture in pictures], machine(), code])
        file = self.workspace.ablations / ".timings" / f"{name}.json"
        known = Timing.model_validate_json(file.read_text()) if file.exists() else None
        if known is not None and (name in self._timed or (not self.retime and self._holds(known))):
            return known
        with tempfile.TemporaryDirectory() as folder:
            judge.save(backbone, Path(folder) / "detector")
            timing = time_served(Path(folder) / "detector", pictures)
        if known is not None and timing.busy and not self.retime:  # both may be too slow, neither too fast
            timing = min(known, timing, key=lambda each: each.median_ms)
        self._timed.add(name)
        write_json(file, timing.model_dump(mode="json"))
        return timing

    @staticmethod
    def _holds(timing: Timing) -> bool:
        return timing.machine == machine() and not timing.busy


class _Judge:
    """A fitted model with what judges it."""

    def __init__(self, line: LineConfig, folder: Path, cached: CacheManifest, manifest: Manifest) -> None:
        from csflow.detector.kinds import load_model
        from csflow.detector.model import round_to_stored

        self.line, self.cached, self.manifest = line, cached, manifest
        self.test = manifest.rows(role="test")
        self.model: Model = load_model(folder / "model.safetensors", line, cached.shapes)
        round_to_stored(self.model)

    @property
    def counts(self) -> dict[str, int]:
        labels = list(self.test.frame["label"])
        return {f"test_{label}": labels.count(label) for label in ("good", "defective")}

    @property
    def parameters(self) -> int:
        """Numbers that were fitted: weights, or what a kind without weights keeps of the images."""
        state = self.model.state_dict().values()
        return sum(tensor.numel() for tensor in state if tensor.is_floating_point())

    @property
    def graph(self) -> list[Any]:
        """What decides how long the served form takes: everything but the values of the weights."""
        line = self.line
        parts = line.model_dump(mode="json", include={"detector", "features", "flow", "scoring", "padim", "patchcore"})
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        return [parts, shapes, code_version(*DETECTOR_CODE)]

    def scores(self, cached: CacheManifest, shas: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        from csflow.detector.model import score_stored

        return score_stored(self.model, cached.open(shas))

    def nll(self, shas: Sequence[str]) -> Measured | None:
        """Mean negative log-likelihood a dimension of images in nats, with its 95 % interval; None for other kinds."""
        import torch

        from csflow.detector.model import FlowModel

        if not isinstance(self.model, FlowModel):
            return None
        flow, features = self.model.flow, self.cached.open(shas)
        values: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(features), 32):
                latents, log_det = flow(features.batch(range(start, min(start + 32, len(features)))))
                values += flow.per_dimension(flow.negative_log_likelihood(latents, log_det), latents).tolist()
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
        return Measured(mean, mean - 1.96 * error, mean + 1.96 * error)

    @cached_property
    def scored_test(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return self.scores(self.cached, list(self.test.frame["sha256"]))

    @property
    def is_labelled(self) -> bool:
        """Whether there are test images of both kinds."""
        return set(self.test.frame["label"]) == {"good", "defective"}

    @property
    def test_scores(self) -> dict[str, tuple[float, ...]]:
        """Scores of both kinds, rounded to what tells them apart; empty without both kinds."""
        if not self.is_labelled:
            return {}
        scores, labels = self.scored_test[0], self.test.frame["label"].to_numpy()
        return {
            label: tuple(float(f"{score:.6g}") for score in scores[labels == label]) for label in ("good", "defective")
        }

    def on_test(self) -> dict[str, Measured]:
        """Metrics of the test images; none without both kinds, none of pixels without masks."""
        if not self.is_labelled:
            return {}
        from csflow.metrics.evaluation import measured_on

        return measured_on(self.test, *self.scored_test)

    def save(self, backbone: Backbone, directory: Path) -> None:
        """Write the detector directory that would be served, without a threshold, which takes no time."""
        from csflow.detector.calibration import calibrate
        from csflow.detector.detector import Detector

        good = _of_role(self.manifest, "fit")[:TIMED_IMAGES]
        scores, maps = self.scores(self.cached, good)
        line = self.line.model_copy(update={"calibration": "none"})
        Detector(line, backbone, self.model, calibrate(scores, maps, "none"), {}).save(directory)


def paste_on(good: Manifest, root: Path) -> Manifest:
    """The images with a synthetic defect each, written once, as a manifest of their own.

    Raises:
        DataError: If an image cannot be read or is too small for a defect.
    """
    code = code_version("synthetic/paste", "synthetic/noise", "data/images")
    folder = root / sha256_json([list(good.frame["sha256"]), DEFECT_SEED, code])[:32]
    if not folder.is_dir():
        from csflow.data.images import read_image
        from csflow.synthetic.paste import paste_defects

        pasted, _ = paste_defects([read_image(file) for file in good.files], DEFECT_SEED)
        with new_directory(folder) as target:
            for sha, picture in zip(good.frame["sha256"], pasted, strict=True):
                picture.save(target / f"{sha}.png")
    frame = good.frame[["path", "sha256"]].assign(path=[f"{sha}.png" for sha in good.frame["sha256"]])
    frame["sha256"] = [sha256_file(folder / name) for name in frame["path"]]
    return type(good)(frame, folder)


def _of_role(manifest: Manifest, role: str) -> list[str]:
    return list(manifest.rows(role=role).frame["sha256"])


def _training_seconds(folder: Path, began: float) -> float | None:
    """Of all epochs, whenever they ran; of kinds without epochs only what was fitted just now is known."""
    file = folder / "training.json"
    epochs = json.loads(file.read_text())
    if epochs:
        return float(sum(epoch["seconds"] for epoch in epochs))
    finished = file.stat().st_mtime
    return finished - began if finished >= began else None
