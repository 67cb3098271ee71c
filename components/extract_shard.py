"""Extract the features of one shard of the images that the store does not hold yet."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def extract_shard(context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], shard: int, shards: int) -> str:
    """Extract one shard and return its description as JSON; see csflow.steps.cache_features.extract_shard."""
    from csflow.runs.services import Services
    from csflow.steps import cache_features

    return cache_features.extract_shard(
        Services.from_environment(), context.path, manifest.path, shard=shard, shards=shards
    )
