"""Let the gate decide; publish, deploy and crown the winner; close the run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.runs.context import RunContext, load_manifest, step
from csflow.system.progress import say
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest
    from csflow.release.gate import GateDecision


def promote(context_path: str | Path, manifest_path: str | Path, *, version: int) -> str:
    """Last step of every run.

    Args:
        context_path: What ``ingest`` wrote.
        manifest_path: The line's manifest.
        version: What ``register`` returned, 0 if nothing changed.

    Returns:
        The outcome: ``promoted``, ``kept_worse``, ``kept_insufficient``, ``held`` or ``unchanged``.

    Raises:
        RegistryError: If a version's files are not those registered.
        DeployError: If the endpoint does not start or does not answer as the detector does.
    """
    context = RunContext.load(Path(context_path))
    workspace = Workspace.from_environment()
    with step("promote", context):
        from csflow.adapters.mlflow import tracking
        from csflow.release import promotion
        from csflow.release.rollout import sample_images

        manifest = load_manifest(context, Path(manifest_path))
        samples = sample_images(manifest)
        if context.unchanged:
            promotion.reconcile(workspace, context.line, samples)
            outcome, reason = "unchanged", "data, configuration and code are those of the last decision"
        else:
            judge = partial(_judge, workspace, context, version, manifest)
            result = promotion.promote(workspace, context.line, version, judge, samples)
            outcome, reason = result.outcome, result.reason
        tracking.set_tags(workspace, context.run_id, {"decision_reason": reason})
        say(f"promote: {outcome}: {reason}")
    tracking.finish(workspace, context.run_id, outcome)
    return outcome


def _judge(workspace: Workspace, context: RunContext, version: int, manifest: Manifest) -> GateDecision:
    """The gate's decision; its numbers stay with the version, for ``csflow why``, and its pictures with the run."""
    from csflow.adapters.mlflow import registry, tracking
    from csflow.release.challenge import decide

    comparison = workspace.runs / context.run_id / "comparison"
    decision = decide(workspace, context.line, version, manifest, comparison_out=comparison)
    if comparison.exists():
        tracking.log_artifact(workspace, context.run_id, comparison)
    evidence = json.dumps(dict(decision.evidence))
    registry.set_version_tags(workspace, context.line.line, version, {"decision_evidence": evidence})
    return decision
