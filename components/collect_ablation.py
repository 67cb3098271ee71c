"""Lay the variants of an ablation side by side: tables, plot, artifacts."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def collect_ablation(folder: str, rows: list, page: dsl.Output[dsl.HTML]) -> str:  # type: ignore[type-arg]
    """See csflow.ablation.run.collect. Returns the folder."""
    from csflow.ablation import run as ablate

    return ablate.collect_step(folder, rows, page_out=page.path)
