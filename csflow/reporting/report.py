"""Write the findings of an evaluation as JSON, pictures and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from csflow.reporting.findings import Evaluation as Evaluation
from csflow.reporting.normality import Normality, judge_normality
from csflow.reporting.page import css_gradient, data_uri, encoded, render_page, thumbnail
from csflow.reporting.verdict import unjudged
from csflow.system.files import write_atomic, write_json


def write_report(directory: Path, evaluation: Evaluation) -> Path:
    """Write ``report.json``, the pictures and, last, ``report.html``.

    Args:
        directory: Created if needed; files of an earlier report are replaced.
        evaluation: The findings.

    Returns:
        Path of ``report.html``, which needs no other file and no network.

    Raises:
        CsflowError: If a file cannot be written.
    """
    normality = judge_normality(evaluation.features) if evaluation.features else None
    figures = _figures(evaluation, normality)
    for name, content in {**figures, **_panels(evaluation)}.items():
        write_atomic(directory / f"{name}.png", content)
    samples = [
        (sample, f"samples/{sample.group}-{number:02d}.png")
        for number, sample in enumerate(evaluation.samples, start=1)
    ]
    for sample, name in samples:
        write_atomic(directory / name, encoded(sample.overlay, "PNG"))
    shown = {name: sample.result.path for sample, name in samples}
    write_json(directory / "report.json", _facts(evaluation, normality, shown))
    page = directory / "report.html"
    write_atomic(page, render_report(evaluation, figures, normality))
    return page


def render_report(evaluation: Evaluation, figures: Mapping[str, bytes], normality: Normality | None = None) -> str:
    """Render the report page as HTML text.

    Args:
        evaluation: The findings.
        figures: PNG files by the names ``scores``, ``roc``, ``features``, ``training``; missing ones are left out.
        normality: Of the evaluation's features.
    """
    samples: dict[str, list[dict[str, object]]] = {}
    for sample in evaluation.samples:
        pictures = {"image": thumbnail(sample.image), "overlay": thumbnail(sample.overlay)}
        samples.setdefault(sample.group, []).append({"result": sample.result, **pictures})
    return render_page(
        "report.html.j2",
        evaluation=evaluation,
        calibration=evaluation.calibration,
        scale=evaluation.calibration.scale,
        unjudged=unjudged(),
        figures={name: data_uri(content, "png") for name, content in figures.items()},
        samples=samples,
        examples=_examples(evaluation),
        normality=normality,
        gradient=css_gradient(),
    )


def _examples(evaluation: Evaluation) -> list[dict[str, object]]:
    """Return the typical images with their three views, as the page shows them."""
    from csflow.reporting.panels import three_views

    return [
        {"result": example.result, "views": [thumbnail(view) for view in three_views(example, evaluation.calibration)]}
        for example in evaluation.examples
    ]


def _figures(evaluation: Evaluation, normality: Normality | None) -> dict[str, bytes]:
    """Draw the plots, as PNG files by name."""
    from csflow.reporting import figures

    drawn: dict[str, bytes] = {}
    good, bad = evaluation.scores[~evaluation.labels], evaluation.scores[evaluation.labels]
    if evaluation.images:
        drawn["scores"] = figures.png(figures.score_histogram(good, bad, threshold=evaluation.calibration.threshold))
    if evaluation.roc is not None and evaluation.image_auroc is not None and evaluation.interval is not None:
        curve = figures.roc_figure(
            evaluation.roc,
            auroc=evaluation.image_auroc,
            interval=evaluation.interval,
            operating_point=evaluation.operating_point,
        )
        drawn["roc"] = figures.png(curve)
    if evaluation.features is not None and normality is not None:
        sample, shown = evaluation.features, normality.shown
        names = [sample.names[index] for index in shown]
        drawn["features"] = figures.png(
            figures.feature_histograms(sample.values[:, shown], normality.fit.only(shown), names)
        )
    if evaluation.nll:
        drawn["training"] = figures.png(figures.training_curve(evaluation.nll))
    return drawn


def _panels(evaluation: Evaluation) -> dict[str, bytes]:
    """Draw the panels of pictures, as PNG files by name; the page shows the same pictures in its own layout."""
    from csflow.reporting import figures, panels

    drawn: dict[str, bytes] = {}
    if evaluation.examples:
        drawn["localisation"] = figures.png(panels.localisation_figure(evaluation.examples, evaluation.calibration))
    if any(sample.group in ("miss", "false_alarm") for sample in evaluation.samples):
        drawn["mistakes"] = figures.png(panels.mistakes_figure(evaluation.samples, evaluation.calibration))
    return drawn


def _facts(evaluation: Evaluation, normality: Normality | None, samples: Mapping[str, str]) -> dict[str, object]:
    calibration = {key: value for key, value in evaluation.calibration.to_json().items() if key != "scores"}
    curve = evaluation.roc
    return {
        "line": evaluation.line,
        "image_auroc": evaluation.image_auroc,
        "image_auroc_interval": evaluation.interval,
        "pixel_auroc": evaluation.pixel_auroc,
        "metrics": {name: found._asdict() for name, found in evaluation.metrics.items()},
        "binning_error": dict(evaluation.pixels.error) if evaluation.pixels else None,
        "calibration": {**calibration, "statement": evaluation.calibration.statement},
        "false_alarms": evaluation.false_alarms and evaluation.false_alarms._asdict(),
        "defects_found": evaluation.detections and evaluation.detections._asdict(),
        "misses": evaluation.misses and evaluation.misses._asdict(),
        "promise_refuted": evaluation.promise_refuted,
        "defects": [
            {**row._asdict(), "metrics": {name: found._asdict() for name, found in row.metrics.items()}}
            for row in evaluation.defects
        ],
        "roc": curve and {"fpr": curve.false_positive_rate.tolist(), "tpr": curve.true_positive_rate.tolist()},
        "nll": list(evaluation.nll),
        "features": _feature_facts(evaluation, normality),
        "examples": {example.result.kind: example.result.path for example in evaluation.examples},
        "lineage": {
            key: dict(value) if isinstance(value, Mapping) else str(value) for key, value in evaluation.lineage.items()
        },
        "samples": dict(samples),
        "images": [asdict(result) for result in evaluation.images],
    }


def _feature_facts(evaluation: Evaluation, normality: Normality | None) -> dict[str, object] | None:
    if evaluation.features is None or normality is None:
        return None
    images, drawn = evaluation.features.values.shape
    fit = normality.fit
    shown = [
        {
            "feature": evaluation.features.names[i],
            "mean": float(fit.mean[i]),
            "deviation": float(fit.deviation[i]),
            "distance": float(fit.distance[i]),
        }
        for i in normality.shown
    ]
    facts = {"images": images, "drawn": drawn, "normal_limit": normality.limit, "share_not_normal": normality.share}
    return {**facts, "shown": shown}
