"""``csflow evaluate``: evaluate a registered detector on its line's current data, without a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csflow.cli.options import JsonOption, print_json, require_report_folder
from csflow.errors import ModelError
from csflow.runs.services import Services


def evaluate_detector(
    line: Annotated[str, typer.Argument(metavar="LINE", help="Name of the line whose data is judged.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="LINE@VERSION or a detector directory.", show_default="the line's champion"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and pictures.")] = Path("evaluation"),
    as_json: JsonOption = False,
) -> None:
    """Score a line's test images with a detector and write the report."""
    from csflow.config import load_line
    from csflow.detector.detector import Detector
    from csflow.release.locate import locate_detector
    from csflow.reporting.report import write_report
    from csflow.runs.checkout import materialise
    from csflow.runs.stored_features import feature_store
    from csflow.steps.evaluate import judge

    require_report_folder(out)
    config, services = load_line(line), Services.from_environment()
    detector = Detector.load(locate_detector(model or config.line, services))
    manifest, _ = materialise(config, services.workspace)
    test = manifest.rows(role="test")
    if len(test) == 0:
        raise ModelError(f"Line {config.line} has no test images. Add some: csflow data add {config.line} FOLDER")
    cached = feature_store(services).extract(test, detector.line.features, detector.backbone)
    evaluation = judge(detector, manifest, cached)
    page = write_report(out, evaluation)
    if as_json:
        print_json(
            {
                "line": config.line,
                "metrics": {name: list(found) for name, found in evaluation.metrics.items()},
                "threshold": evaluation.calibration.threshold,
                "promise": evaluation.calibration.statement,
                "report": str(page),
            }
        )
        return
    if evaluation.image_auroc is not None and evaluation.interval is not None:
        low, high = evaluation.interval
        typer.echo(
            f"image AUROC {100 * evaluation.image_auroc:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f})"
        )
    if evaluation.pixel_auroc is not None:
        typer.echo(f"pixel AUROC {100 * evaluation.pixel_auroc:.2f} %")
    typer.echo(evaluation.calibration.statement)
    typer.echo(f"Report: {page}")
