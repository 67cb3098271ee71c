"""Let the gate decide; publish, deploy and crown the winner."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def promote(context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], version: int) -> str:
    """Let the gate decide, deploy what it promotes, and return the outcome; see csflow.steps.promote."""
    from csflow.runs.services import Services
    from csflow.steps import promote

    return promote.promote(Services.from_environment(), context.path, manifest.path, version=version)
