"""Extract the features that the store does not hold yet."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def cache_features(
    context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], features: dsl.Output[dsl.Dataset]
) -> None:
    """See csflow.steps.cache_features."""
    from csflow.steps import cache_features

    cache_features.cache_features(context.path, manifest.path, features_out=features.path)
