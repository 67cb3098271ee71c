"""Define ablations as a graph: for every line a plan, a loop over its variants, and the tables of the results."""

from collections.abc import Callable
from typing import List  # noqa: UP035 - kfp reads the loop's item type from here

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.ablate_variant import ablate_variant
from components.collect_ablation import collect_ablation
from components.plan_ablation import plan_ablation
from pipelines.placement import local

ABLATION = "csflow-ablate"


def ablate_on(place: Callable[..., None]) -> BaseComponent:
    """Return the pipeline, with ``place`` (such as a :class:`pipelines.placement.Placement`) applied to every task."""

    @dsl.pipeline(name="csflow-ablation-variants", description="Every variant of one ablation.")  # type: ignore[untyped-decorator]
    def measure_variants(folder: str, keys: List[str]) -> List[str]:  # noqa: UP006
        """Measure every variant.

        The local runner gathers what a loop returns only in a pipeline of its own.

        Args:
            folder: Of the ablation.
            keys: Of its rows.

        Returns:
            The keys of the rows measured.
        """
        with dsl.ParallelFor(keys, parallelism=1) as key:
            row = ablate_variant(folder=folder, key=key)
            place(row)
        measured: List[str] = dsl.Collected(row.output)  # noqa: UP006
        return measured

    @dsl.pipeline(name=ABLATION, description="What each part of the method brings.")  # type: ignore[untyped-decorator]
    def ablate(requests: List[str]) -> None:  # noqa: UP006
        """Ablate lines, one after the other.

        Args:
            requests: What to try on each line, as JSON of :class:`csflow.ablation.request.Request`.
        """
        with dsl.ParallelFor(requests, parallelism=1) as request:
            planned = plan_ablation(request=request)
            measured = measure_variants(folder=planned.outputs["folder"], keys=planned.outputs["keys"])
            collected = collect_ablation(folder=planned.outputs["folder"], rows=measured.output)
            place(planned, collected)
            measured.set_caching_options(enable_caching=False)

    graph: BaseComponent = ablate
    return graph


ablation = ablate_on(local)
"""For runs on this machine."""
