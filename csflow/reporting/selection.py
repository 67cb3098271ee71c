"""Choose the test images that a report shows, by fixed rules and not by how good a picture looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from csflow.reporting.findings import ImageResult, SampleGroup


def choose_samples(
    images: Sequence[ImageResult], threshold: float | None, *, each: int = 6
) -> list[tuple[SampleGroup, int]]:
    """Choose the test images to show: mistakes, then correct decisions near to the threshold and far from it.

    First misses and false alarms, the worst first. Then, of the images judged correctly, the nearest to the threshold
    and the farthest on both sides (without a threshold: from the middle between the classes' medians).

    Args:
        images: All test images.
        threshold: The detector's; None without one.
        each: Images of a group at most.

    Returns:
        Group and index into ``images``; no image twice.
    """
    scores = np.array([r.score for r in images], dtype=np.float64)
    bad = np.array([r.label == "defective" for r in images], dtype=bool)
    if scores.size == 0:
        return []
    middle = threshold if threshold is not None else _between(scores, bad)
    called = scores > middle
    ascending = np.argsort(scores, kind="stable")
    wrong = called != bad if threshold is not None else np.zeros_like(bad)
    misses = [i for i in ascending if wrong[i] and bad[i]][:each]
    alarms = [i for i in ascending[::-1] if wrong[i] and not bad[i]][:each]
    right = [i for i in ascending if not wrong[i]]
    near = sorted(right, key=lambda i: abs(scores[i] - middle))[:each]
    rest = [i for i in right if i not in set(near)]
    quiet = [i for i in rest if not bad[i]][: each // 2]
    loud = [i for i in rest[::-1] if bad[i]][: each - each // 2]
    groups: list[tuple[SampleGroup, list[np.intp]]] = [
        ("miss", misses), ("false_alarm", alarms), ("least_certain", near), ("most_certain", quiet + loud),
    ]  # fmt: skip
    return [(group, int(index)) for group, chosen in groups for index in chosen]


def choose_examples(images: Sequence[ImageResult]) -> list[int]:
    """Choose the image with the median score of each kind, good first, then the types of defect by name.

    Of an even number of images it is the lower of the two in the middle, of equal scores the first. The best image of a
    kind would show what the detector can do once, the median shows what it does.

    Returns:
        Indices into ``images``.
    """
    kinds = sorted({(result.label == "defective", result.kind) for result in images})
    chosen = []
    for kind in kinds:
        members = [i for i, result in enumerate(images) if (result.label == "defective", result.kind) == kind]
        chosen.append(sorted(members, key=lambda i: images[i].score)[(len(members) - 1) // 2])
    return chosen


def _between(scores: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_]) -> float:
    groups = [group for group in (scores[bad], scores[~bad]) if group.size]
    return float(np.mean([np.median(group) for group in groups]))
