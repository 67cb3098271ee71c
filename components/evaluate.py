"""Calibrate the threshold, score the test images, assemble the detector and its report."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    context: dsl.Input[dsl.Artifact],
    manifest: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    detector: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Judge the detector on the test images and write its report; see csflow.steps.evaluate."""
    from csflow.runs.services import Services
    from csflow.steps import evaluate

    results = evaluate.evaluate(
        Services.from_environment(),
        context.path,
        manifest.path,
        features.path,
        model.path,
        detector_out=detector.path,
        report_out=report.path,
    )
    for name, value in results.items():
        metrics.log_metric(name, value)
