"""What an evaluation found, as JSON, pictures and one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from csflow.calibration import Calibration
from csflow.files import write_atomic, write_json
from csflow.metrics import Interval, RocCurve, bootstrap_interval, clopper_pearson, image_auroc, roc_curve

SampleGroup = Literal["miss", "false_alarm", "least_certain", "most_certain"]

_THUMBNAIL = 320


@dataclass(frozen=True)
class ImageResult:
    """What the detector said about one test image."""

    path: str
    label: Literal["good", "defective"]
    defect: str
    score: float
    p_value: float | None
    decision: Literal["good", "defective"] | None


@dataclass(frozen=True)
class Sample:
    """A test image worth looking at, with its overlay from `csflow.scoring.overlay`."""

    group: SampleGroup
    result: ImageResult
    image: Image.Image
    overlay: Image.Image


class Rate(NamedTuple):
    """``events`` of ``trials`` images and the exact interval of their rate (None without trials)."""

    events: int
    trials: int
    interval: Interval | None


class DefectRow(NamedTuple):
    """One defect type: how many images, how many called defective, AUROC against all good test images."""

    defect: str
    images: int
    detected: int | None
    image_auroc: float | None


@dataclass(frozen=True)
class Evaluation:
    """Everything a report tells. What follows from the images is computed from them, not passed in.

    Attributes:
        line: Name of the product line.
        images: All test images.
        calibration: Of the detector.
        pixel_auroc: None if no defective image has a mask.
        samples: Images to show, chosen with `choose_samples`.
        nll: Training curve, nll per dimension of each epoch; may be empty.
        lineage: What it came from (data, revision, run, backbone, …), shown as it is.
    """

    line: str
    images: Sequence[ImageResult]
    calibration: Calibration
    pixel_auroc: float | None = None
    samples: Sequence[Sample] = ()
    nll: Sequence[float] = ()
    lineage: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """Scores of `images`."""
        return np.array([result.score for result in self.images], dtype=np.float64)

    @cached_property
    def labels(self) -> npt.NDArray[np.bool_]:
        """True where `images` are defective."""
        return np.array([result.label == "defective" for result in self.images], dtype=bool)

    @property
    def has_both_classes(self) -> bool:
        """Whether an AUROC exists."""
        return bool(self.labels.any() and not self.labels.all())

    @cached_property
    def image_auroc(self) -> float | None:
        """Image AUROC; None without good or without defective test images."""
        return image_auroc(self.scores, self.labels) if self.has_both_classes else None

    @cached_property
    def interval(self) -> Interval | None:
        """95 % bootstrap interval of `image_auroc`."""
        return bootstrap_interval(self.scores, self.labels) if self.has_both_classes else None

    @cached_property
    def roc(self) -> RocCurve | None:
        """ROC curve; None as `image_auroc`."""
        return roc_curve(self.scores, self.labels) if self.has_both_classes else None

    @cached_property
    def false_alarms(self) -> Rate | None:
        """Good test images called defective; None without a threshold."""
        return self._rate("good", "defective")

    @cached_property
    def misses(self) -> Rate | None:
        """Defective test images called good; None without a threshold."""
        return self._rate("defective", "good")

    @property
    def promise_refuted(self) -> bool:
        """Whether chance would give good test images so many false alarms in under 1 % of evaluations."""
        rate = self.false_alarms
        surprise = self.calibration.surprise(rate.events, rate.trials) if rate else None
        return surprise is not None and surprise < 0.01

    @cached_property
    def defects(self) -> list[DefectRow]:
        """One row a defect type, by name."""
        return [self._defect_row(name) for name in sorted({r.defect for r in self.images if r.label == "defective"})]

    def _rate(self, label: str, decision: str) -> Rate | None:
        if self.calibration.threshold is None:
            return None
        relevant = [result for result in self.images if result.label == label]
        events = sum(result.decision == decision for result in relevant)
        return Rate(events, len(relevant), clopper_pearson(events, len(relevant)) if relevant else None)

    def _defect_row(self, name: str) -> DefectRow:
        chosen = np.array([r.label == "defective" and r.defect == name for r in self.images], dtype=bool)
        judged = [r for r, is_chosen in zip(self.images, chosen, strict=True) if is_chosen]
        detected = sum(r.decision == "defective" for r in judged)
        kept = chosen | ~self.labels
        auroc = image_auroc(self.scores[kept], chosen[kept]) if self.has_both_classes else None
        return DefectRow(name, len(judged), None if self.calibration.threshold is None else detected, auroc)


def choose_samples(
    images: Sequence[ImageResult], threshold: float | None, *, each: int = 6
) -> list[tuple[SampleGroup, int]]:
    """Which test images to show: group and index into ``images``; no image twice.

    Misses and false alarms, the worst first. Then, of those judged rightly, the nearest to the threshold and
    the farthest on both sides (without a threshold: to the middle between the classes' medians).
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


def write_report(directory: Path, evaluation: Evaluation) -> Path:
    """Write ``report.json``, the pictures and, last, ``report.html``.

    Args:
        directory: Made if it is missing; files of an earlier report are replaced.
        evaluation: What was found.

    Returns:
        Path of ``report.html``, which needs no other file and no network.

    Raises:
        CsflowError: If a file cannot be written.
    """
    figures = _figures(evaluation)
    for name, content in figures.items():
        write_atomic(directory / f"{name}.png", content)
    samples = [
        (sample, f"samples/{sample.group}-{number:02d}.png")
        for number, sample in enumerate(evaluation.samples, start=1)
    ]
    for sample, name in samples:
        write_atomic(directory / name, _encoded(sample.overlay, "PNG"))
    write_json(directory / "report.json", _facts(evaluation, {name: sample.result.path for sample, name in samples}))
    page = directory / "report.html"
    write_atomic(page, render(evaluation, figures))
    return page


def render(evaluation: Evaluation, figures: Mapping[str, bytes]) -> str:
    """The report page as HTML text.

    Args:
        evaluation: What was found.
        figures: PNG files by the names ``scores``, ``roc``, ``training``; missing ones are left out.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("csflow").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    shown: dict[str, list[dict[str, object]]] = {}
    for sample in evaluation.samples:
        pictures = {"image": _thumbnail(sample.image), "overlay": _thumbnail(sample.overlay)}
        shown.setdefault(sample.group, []).append({"result": sample.result, **pictures})
    return environment.from_string(template).render(
        evaluation=evaluation,
        calibration=evaluation.calibration,
        figures={name: _data_uri(content, "png") for name, content in figures.items()},
        samples=shown,
    )


def _figures(evaluation: Evaluation) -> dict[str, bytes]:
    from csflow import figures

    drawn: dict[str, bytes] = {}
    good, bad = evaluation.scores[~evaluation.labels], evaluation.scores[evaluation.labels]
    if evaluation.images:
        drawn["scores"] = figures.png(figures.score_histogram(good, bad, threshold=evaluation.calibration.threshold))
    if evaluation.roc is not None and evaluation.image_auroc is not None and evaluation.interval is not None:
        curve = figures.roc_figure(
            evaluation.roc,
            auroc=evaluation.image_auroc,
            interval=evaluation.interval,
            operating_point=_operating_point(evaluation),
        )
        drawn["roc"] = figures.png(curve)
    if evaluation.nll:
        drawn["training"] = figures.png(figures.training_curve(evaluation.nll))
    return drawn


def _operating_point(evaluation: Evaluation) -> tuple[float, float] | None:
    alarms, misses = evaluation.false_alarms, evaluation.misses
    if not alarms or not misses or not alarms.trials or not misses.trials:
        return None
    return alarms.events / alarms.trials, 1 - misses.events / misses.trials


def _facts(evaluation: Evaluation, samples: Mapping[str, str]) -> dict[str, object]:
    calibration = {key: value for key, value in evaluation.calibration.to_json().items() if key != "scores"}
    curve = evaluation.roc
    return {
        "line": evaluation.line,
        "image_auroc": evaluation.image_auroc,
        "image_auroc_interval": evaluation.interval,
        "pixel_auroc": evaluation.pixel_auroc,
        "calibration": {**calibration, "statement": evaluation.calibration.statement},
        "false_alarms": evaluation.false_alarms and evaluation.false_alarms._asdict(),
        "misses": evaluation.misses and evaluation.misses._asdict(),
        "promise_refuted": evaluation.promise_refuted,
        "defects": [row._asdict() for row in evaluation.defects],
        "roc": curve and {"fpr": curve.false_positive_rate.tolist(), "tpr": curve.true_positive_rate.tolist()},
        "nll": list(evaluation.nll),
        "lineage": {key: str(value) for key, value in evaluation.lineage.items()},
        "samples": dict(samples),
        "images": [asdict(result) for result in evaluation.images],
    }


def _between(scores: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_]) -> float:
    groups = [group for group in (scores[bad], scores[~bad]) if group.size]
    return float(np.mean([np.median(group) for group in groups]))


def _encoded(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, kind, quality=88)
    return buffer.getvalue()


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _data_uri(_encoded(small, "JPEG"), "jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
