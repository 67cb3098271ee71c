"""Decide what an ablation measures and open its MLflow run."""

from typing import NamedTuple

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_ablation(request: str) -> NamedTuple("Planned", [("folder", str), ("keys", list)]):  # type: ignore[valid-type]
    """Plan an ablation and return its folder and the keys of its rows; see csflow.ablation.steps.plan_step."""
    from csflow.ablation import steps
    from csflow.runs.services import Services

    return steps.plan_step(Services.from_environment(), request)
