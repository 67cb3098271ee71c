"""Stop the run if the data breaks the line's quality bounds."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def validate(context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], report: dsl.Output[dsl.HTML]) -> None:
    """Let the data gate check the images; see csflow.steps.validate."""
    from csflow.runs.services import Services
    from csflow.steps import validate

    validate.validate(Services.from_environment(), context.path, manifest.path, report_out=report.path)
