"""Fit the flow to the features of the good images."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train(
    context: dsl.Input[dsl.Artifact],
    manifest: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
) -> None:
    """Fit the model of the detector; see csflow.steps.train."""
    from csflow.runs.services import Services
    from csflow.steps import train

    train.train(Services.from_environment(), context.path, manifest.path, features.path, model_out=model.path)
