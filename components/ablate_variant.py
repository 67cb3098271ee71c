"""Measure one variant of an ablation, or find its row."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def ablate_variant(folder: str, key: str) -> str:
    """Measure one variant and return the key of its row; see csflow.ablation.steps.variant_step."""
    from csflow.ablation import steps
    from csflow.runs.services import Services

    return steps.variant_step(Services.from_environment(), folder, key)
