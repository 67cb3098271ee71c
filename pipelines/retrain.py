"""Define the retraining of a line's model as one straight graph, from images to a served detector."""

from collections.abc import Callable
from typing import List  # noqa: UP035 - kfp reads the loop's item type from here

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.cache_features import cache_features
from components.evaluate import evaluate
from components.extract_shard import extract_shard
from components.ingest import ingest
from components.plan_shards import plan_shards
from components.promote import promote
from components.register import register
from components.train import train
from components.validate import validate
from pipelines.placement import local

NAME = "csflow-retrain"


def _extract_on(place: Callable[..., None]) -> BaseComponent:
    """Return the nested pipeline that extracts features in shards."""

    @dsl.pipeline(name="csflow-extract", description="The features of a line's images, in shards.")
    def extract(context: dsl.Input[dsl.Artifact], manifest: dsl.Input[dsl.Dataset], shards: int) -> List[str]:  # noqa: UP006
        """Extract features in shards, all at once.

        The local runner gathers what a loop returns only in a pipeline of its own.

        Args:
            context: Of the run.
            manifest: The line's images.
            shards: Number of shards.

        Returns:
            The description of each shard as JSON; see csflow.steps.cache_features.extract_shard.
        """
        planned = plan_shards(shards=shards)
        with dsl.ParallelFor(planned.output) as shard:
            part = extract_shard(context=context, manifest=manifest, shard=shard, shards=shards)
        place(planned, part)
        done: List[str] = dsl.Collected(part.output)  # noqa: UP006
        return done

    nested: BaseComponent = extract
    return nested


def retrain_on(place: Callable[..., None], *, here: bool = False) -> BaseComponent:
    """Return the pipeline with its tasks placed.

    Args:
        place: Called with every task, for instance a :class:`pipelines.placement.Placement`.
        here: True for kfp's local runner, which supports loops in a nested pipeline only if the outermost one has
            branches or loops too (``has_control_flow`` in ``kfp.local.pipeline_orchestrator``); a branch that is never
            taken is then added.
    """
    extract = _extract_on(place)

    @dsl.pipeline(name=NAME, description="One product line: images in, a served detector out.")
    def retrain(line: str, force: bool = False, shards: int = 1) -> str:
        """Retrain one line and let the gate decide.

        Args:
            line: The line's configuration as JSON, presets merged in.
            force: Train again from another seed even if nothing changed.
            shards: Number of shards, whose features are extracted at the same time.

        Returns:
            The outcome: ``promoted``, ``kept_worse``, ``kept_insufficient``, ``held`` or ``unchanged``.
        """
        data = ingest(line=line, force=force)
        context, manifest = data.outputs["context"], data.outputs["manifest"]
        checked = validate(context=context, manifest=manifest)
        extracted = extract(context=context, manifest=manifest, shards=shards).after(checked)
        features = cache_features(context=context, manifest=manifest, shards=extracted.output)
        model = train(context=context, manifest=manifest, features=features.outputs["features"])
        judged = evaluate(
            context=context,
            manifest=manifest,
            features=features.outputs["features"],
            model=model.outputs["model"],
        )
        registered = register(context=context, manifest=manifest, detector=judged.outputs["detector"])
        decided = promote(context=context, manifest=manifest, version=registered.output)
        place(data, checked, features, model, judged, registered, decided)
        extracted.set_caching_options(enable_caching=False)
        if here:
            with dsl.If(decided.output == "never"):
                plan_shards(shards=1)
        outcome: str = decided.output
        return outcome

    graph: BaseComponent = retrain
    return graph


retrain = retrain_on(local, here=True)
"""For runs on this machine."""
