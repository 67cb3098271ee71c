"""The rules by which a report chooses the images it shows."""

from __future__ import annotations

from typing import Literal

from csflow.reporting.findings import ImageResult
from csflow.reporting.selection import choose_examples, choose_samples


def result(score: float, defect: str = "") -> ImageResult:
    label: Literal["good", "defective"] = "defective" if defect else "good"
    return ImageResult("a.png", label, defect, score, None, None)


def test_samples_are_the_worst_errors_then_the_nearest_and_the_farthest() -> None:
    scores = [(0.99, ""), (0.97, ""), (0.1, ""), (0.2, ""), (0.9, ""), (0.3, "x"), (0.5, "x"), (3.0, "x"), (1.1, "x")]
    images = [result(score, defect) for score, defect in scores]
    assert choose_samples(images, 0.95, each=2) == [
        ("miss", 5), ("miss", 6), ("false_alarm", 0), ("false_alarm", 1),
        ("least_certain", 4), ("least_certain", 8), ("most_certain", 2), ("most_certain", 7),
    ]  # fmt: skip
    assert choose_samples([], 0.5) == []
    assert {group for group, _ in choose_samples(images, None)} == {"least_certain", "most_certain"}


def test_examples_are_the_medians_of_their_kinds() -> None:
    scores = [
        (9.0, "hole"),
        (0.3, ""),
        (0.1, ""),
        (0.2, ""),
        (5.0, "crack"),
        (7.0, "crack"),
        (1.0, "hole"),
        (2.0, "hole"),
    ]
    images = [result(score, defect) for score, defect in scores]
    assert choose_examples(images) == [3, 4, 7]  # good, the lower of two cracks, the middle hole
    assert choose_examples(images[:1]) == [0]
    assert choose_examples([]) == []
