"""Register the detector as a version of the line's model, with its lineage."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def register(context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], detector: dsl.Input[dsl.Model]) -> int:
    """Register the detector and return its version, 0 if nothing was registered; see csflow.steps.register."""
    from csflow.runs.services import Services
    from csflow.steps import register

    return register.register(Services.from_environment(), context.path, manifest.path, detector.path)
