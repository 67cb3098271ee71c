"""Turn a detector's scores and maps of a line's test images into the findings that its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from csflow.data.images import read_image
from csflow.data.manifest import Manifest
from csflow.detector.calibration import Calibration
from csflow.detector.heatmap import overlay
from csflow.metrics import (
    binning_error,
    pixel_by_defect,
    pixel_metrics,
)
from csflow.metrics.evaluation import count_test_pixels
from csflow.reporting.findings import Evaluation, Example, ImageResult, PixelFindings, Sample, SampleGroup
from csflow.reporting.normality import FeatureSample
from csflow.reporting.selection import choose_examples, choose_samples


def evaluate_scores(
    test: Manifest,
    scores: npt.NDArray[np.float32],
    maps: npt.NDArray[np.float32],
    calibration: Calibration,
    *,
    nll: Sequence[float] = (),
    lineage: Mapping[str, object] | None = None,
    features: FeatureSample | None = None,
    bit_depth: int | None = None,
) -> Evaluation:
    """Turn scores and maps of the test images into the findings that a report shows.

    Args:
        test: The test images ``(N,)``.
        scores: Their anomaly scores ``(N,)``.
        maps: Their anomaly maps ``(N, h, w)``.
        calibration: The detector's threshold.
        nll: Training curve, nll per dimension of each epoch.
        lineage: Origin of the detector.
        features: Of the training images, from `csflow.reporting.normality.sample_features`; None shows no histograms.
        bit_depth: Bits that the camera fills in 16-bit samples.

    Raises:
        DataError: If an image or a mask cannot be read.
    """
    results = [_result(row, float(score), calibration) for row, score in zip(_rows(test), scores, strict=True)]
    samples = [
        _sample(group, results[index], read_image(test.files[index], bit_depth), maps[index], calibration)
        for group, index in choose_samples(results, calibration.threshold)
    ]
    return Evaluation(
        line=test.frame["line"].iloc[0] if len(test) else "",
        images=results,
        calibration=calibration,
        pixels=_pixels(test, maps),
        samples=samples,
        examples=[Example(results[i], read_image(test.files[i], bit_depth), maps[i]) for i in choose_examples(results)],
        features=features,
        nll=nll,
        lineage=lineage or {},
    )


def _pixels(test: Manifest, maps: npt.NDArray[np.float32]) -> PixelFindings | None:
    if (counted := count_test_pixels(test, maps)) is None:
        return None
    chosen, counts = counted
    by_defect = pixel_by_defect(counts, list(chosen.frame["defect"]))
    return PixelFindings(pixel_metrics(counts), by_defect, binning_error(counts))


def _rows(test: Manifest) -> list[dict[str, str]]:
    return [{str(name): str(value) for name, value in row.items()} for row in test.frame.to_dict("records")]


def _result(row: Mapping[str, str], score: float, calibration: Calibration) -> ImageResult:
    return ImageResult(
        path=row["path"],
        label="good" if row["label"] == "good" else "defective",
        defect=row["defect"],
        score=score,
        p_value=calibration.p_value(score),
        decision=calibration.decide(score),
    )


def _sample(
    group: SampleGroup,
    result: ImageResult,
    image: Image.Image,
    map2d: npt.NDArray[np.float32],
    calibration: Calibration,
) -> Sample:
    return Sample(group, result, image, overlay(image, map2d, calibration.scale, calibration.region_threshold))
