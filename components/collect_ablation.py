"""Collect the results of an ablation: tables, plots, artifacts."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def collect_ablation(folder: str, rows: list, page: dsl.Output[dsl.HTML]) -> str:  # type: ignore[type-arg]
    """Collect the rows of an ablation and return its folder; see csflow.ablation.steps.collect_step."""
    from csflow.ablation import steps
    from csflow.runs.services import Services

    return steps.collect_step(Services.from_environment(), folder, rows, page_out=page.path)
