"""Record which features of the store belong to the line's images."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def cache_features(
    context: dsl.Input[dsl.Artifact],
    manifest: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
    shards: list,  # type: ignore[type-arg]
) -> None:
    """Compute the features that the store lacks; see csflow.steps.cache_features."""
    from csflow.runs.services import Services
    from csflow.steps import cache_features

    cache_features.cache_features(
        Services.from_environment(), context.path, manifest.path, features_out=features.path, shards=shards
    )
