"""Judge a fitted model: compute its metrics on test and held-out good images, and save the detector to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csflow.ablation.timing import TIMED_IMAGES
from csflow.config import KINDS, LineConfig
from csflow.metrics import Measured
from csflow.runs.identity import detector_code

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.detector.model import Model
    from csflow.features.backbone import Backbone
    from csflow.features.cache_manifest import CacheManifest


class VariantJudge:
    """A fitted model together with the images and features that judge it.

    Args:
        line: The variant's configuration.
        folder: Folder of the fitted model.
        cached: Features of the line's images.
        manifest: The line's images.
    """

    def __init__(self, line: LineConfig, folder: Path, cached: CacheManifest, manifest: Manifest) -> None:
        from csflow.detector.model_file import load_model, round_to_stored

        self.line, self.cached, self.manifest = line, cached, manifest
        self.test = manifest.rows(role="test")
        self.model: Model = load_model(folder / "model.safetensors", line, cached.shapes)
        round_to_stored(self.model)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of good and of defective test images."""
        labels = list(self.test.frame["label"])
        return {f"test_{label}": labels.count(label) for label in ("good", "defective")}

    @property
    def parameters(self) -> int:
        """Count the fitted numbers: weights, or what a detector without weights keeps of the images."""
        state = self.model.state_dict().values()
        return sum(tensor.numel() for tensor in state if tensor.is_floating_point())

    @property
    def graph(self) -> list[Any]:
        """Return everything that determines the time per image: all but the values of the weights."""
        line = self.line
        parts = line.model_dump(
            mode="json",
            include={"detector", "features", "scoring", *KINDS[line.detector].sections},
            exclude={"training"},  # how long the graph takes does not depend on how it was trained
        )
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        return [parts, shapes, detector_code(line)]

    @property
    def is_labelled(self) -> bool:
        """Tell if there are both good and defective test images."""
        return set(self.test.frame["label"]) == {"good", "defective"}

    @property
    def test_scores(self) -> dict[str, tuple[float, ...]]:
        """Return the scores of good and of defective test images to six digits; empty if one kind is missing."""
        if not self.is_labelled:
            return {}
        scores, labels = self._scored_test[0], self.test.frame["label"].to_numpy()
        return {
            label: tuple(float(f"{score:.6g}") for score in scores[labels == label]) for label in ("good", "defective")
        }

    def on_test(self) -> dict[str, Measured]:
        """Measure on the test images.

        Returns:
            Metrics by name; empty if good or defective images are missing, without pixel metrics if masks are.
        """
        if not self.is_labelled:
            return {}
        from csflow.metrics.evaluation import measured_on

        return measured_on(self.test, *self._scored_test)

    def on_held_out(self, good: Manifest, defective: Manifest, features: CacheManifest) -> dict[str, Measured]:
        """Measure on held-out good images and on copies of them with synthetic defects.

        Args:
            good: The held-out images.
            defective: The same images with defects pasted on.
            features: Features of the defective ones.

        Returns:
            ``synthetic_auroc`` and, for CS-Flow, ``held_out_nll``.
        """
        from csflow.metrics import image_metrics

        found, _ = self._scores(features, list(defective.frame["sha256"]))
        clean, _ = self._scores(self.cached, list(good.frame["sha256"]))
        labels = np.repeat([False, True], [len(clean), len(found)])
        synthetic = image_metrics(np.concatenate([clean, found]), labels)["image_auroc"]
        nll = self._nll(list(good.frame["sha256"]))
        return {"synthetic_auroc": synthetic} | ({} if nll is None else {"held_out_nll": nll})

    def save(self, backbone: Backbone, directory: Path) -> None:
        """Write the detector directory that would be served, but without a threshold, which has no effect on time."""
        from csflow.detector.calibration import calibrate
        from csflow.detector.detector import Detector

        good = list(self.manifest.rows(role="fit").frame["sha256"])[:TIMED_IMAGES]
        scores, maps = self._scores(self.cached, good)
        line = self.line.model_copy(update={"calibration": "none"})
        Detector(line, backbone, self.model, calibrate(scores, maps, "none"), {}).save(directory)

    @cached_property
    def _scored_test(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return self._scores(self.cached, list(self.test.frame["sha256"]))

    def _scores(self, cached: CacheManifest, shas: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return scores ``(N,)`` and maps ``(N, h, w)`` of images."""
        from csflow.detector.model import score_stored

        return score_stored(self.model, cached.open(shas))

    def _nll(self, shas: Sequence[str]) -> Measured | None:
        """Average the negative log-likelihood per dimension in nats, with its 95 % interval; None for other kinds."""
        import torch

        from csflow.detector.kinds.cross_scale_flow import FlowModel

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
