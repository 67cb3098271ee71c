"""Lay the variants of an ablation side by side: tables, plot, artifacts."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def collect_ablation(folder: str, rows: list, page: dsl.Output[dsl.HTML]) -> str:  # type: ignore[type-arg]
    """See csflow.steps.ablate.collect. Returns the folder."""
    from csflow.steps import ablate

    return ablate.collect_step(folder, rows, page_out=page.path)
