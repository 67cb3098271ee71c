"""Number the shards in which features are extracted."""

from typing import List  # noqa: UP035 - kfp reads the type of a loop's items from here

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_shards(shards: int) -> List[int]:  # noqa: UP006
    """Return the indices of the shards; see csflow.steps.cache_features.plan_shards."""
    from csflow.steps import cache_features

    return cache_features.plan_shards(shards)
