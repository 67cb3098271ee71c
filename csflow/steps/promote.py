"""Let the gate decide, publish and deploy the version if it is promoted, and close the run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.runs.context import RunContext, load_manifest, step
from csflow.runs.services import Services
from csflow.system.progress import say

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.release.gate import GateDecision


def promote(services: Services, context_path: str | Path, manifest_path: str | Path, *, version: int) -> str:
    """Let the gate decide and close the run: the last step of every run.

    Args:
        services: The outside systems.
        context_path: The context that ``ingest`` wrote.
        manifest_path: The line's manifest.
        version: The version that ``register`` returned; 0 if nothing changed.

    Returns:
        The outcome: ``promoted``, ``kept_worse``, ``kept_insufficient``, ``held`` or ``unchanged``.

    Raises:
        RegistryError: If a version's files are not those registered.
        DeployError: If the endpoint does not start or does not give the detector's results.
    """
    context = RunContext.load(Path(context_path))
    with step(services, "promote", context):
        from csflow.release import promotion
        from csflow.release.deployment import sample_images

        manifest = load_manifest(context, Path(manifest_path))
        samples = sample_images(manifest)
        if context.unchanged:
            promotion.reconcile(services, context.line, samples)
            outcome, reason = "unchanged", "data, configuration and code are those of the last decision"
        else:
            judge = partial(_judge, services, context, version, manifest)
            result = promotion.promote(services, context.line, version, judge, samples)
            outcome, reason = result.outcome, result.reason
            _publish_decision(services, context, version, outcome, reason)
        services.tracker.set_tags(context.run_id, {"decision_reason": reason})
        say(f"promote: {outcome}: {reason}")
    services.tracker.finish(context.run_id, outcome)
    services.registry.back_up()
    return outcome


def _publish_decision(services: Services, context: RunContext, version: int, outcome: str, reason: str) -> None:
    """Put the decision into the model card and at the top of the report."""
    from csflow.release.description import describe_version, read_facts, stamp_report
    from csflow.reporting.model_card import Decision

    decision = Decision(outcome, reason)
    describe_version(services, context, version, read_facts(services, context.run_id), decision)
    stamp_report(services, context.run_id, version, decision)


def _judge(services: Services, context: RunContext, version: int, manifest: Manifest) -> GateDecision:
    """Let the gate decide; store its numbers with the version, for ``csflow why``, and its pictures with the run."""
    from csflow.release.challenge import decide

    comparison = services.workspace.runs / context.run_id / "comparison"
    decision = decide(services, context.line, version, manifest, comparison_out=comparison)
    if comparison.exists():
        services.tracker.log_artifact(context.run_id, comparison)
    evidence = json.dumps(dict(decision.evidence))
    services.registry.set_version_tags(context.line.line, version, {"decision_evidence": evidence})
    return decision
