"""Check out the line's data at its revision and open the MLflow run."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def ingest(line: str, force: bool, context: dsl.Output[dsl.Artifact], manifest: dsl.Output[dsl.Dataset]) -> None:
    """Check out the images and open the run; see csflow.steps.ingest."""
    from csflow.runs.services import Services
    from csflow.steps import ingest

    ingest.ingest(Services.from_environment(), line, force=force, context_out=context.path, manifest_out=manifest.path)
