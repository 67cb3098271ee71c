"""Describe a line, its runs and its versions to people: model cards, digests, and the decision on the report."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from csflow.adapters.mlflow import page
from csflow.errors import RegistryError
from csflow.reporting.model_card import Decision, model_card
from csflow.reporting.verdict import write_verdict
from csflow.runs.context import RunContext
from csflow.runs.services import Services

PAGES = {
    "report": "report/report.html",
    "data gate": "data_quality/data_quality.html",
    "comparison with the champion": "comparison/comparison.html",
}
"""Artifacts of a run that a model card links to, by the name that it gives them."""


def read_facts(services: Services, run_id: str) -> dict[str, Any]:
    """Read the ``report.json`` of a run; it is empty if the run has none."""
    with tempfile.TemporaryDirectory(prefix="csflow-report.") as scratch:
        try:
            file = services.tracker.fetch_artifact(run_id, "report/report.json", Path(scratch))
        except RegistryError:
            return {}
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return facts


def describe_line(services: Services, context: RunContext) -> None:
    """Describe a line's experiment and registered model."""
    line = context.line
    about = f"Detects defects on the product line **{line.line}**. {line.description}".strip()
    services.tracker.describe_line(line.line, about)
    experiment = services.tracker.read_run(context.run_id).experiment
    runs = f"[all runs side by side]({page.runs_address('', experiment).lstrip('/')})"
    services.registry.describe(line.line, text=f"{about}\n\nThe alias *champion* is served. See {runs}.")


def describe_version(
    services: Services, context: RunContext, version: int, facts: dict[str, Any], decision: Decision | None = None
) -> None:
    """Write the model card of a version, which also describes the run that made it.

    Args:
        services: The outside systems.
        context: The run.
        version: Its version.
        facts: From :func:`read_facts`.
        decision: The gate's, once there is one.
    """
    experiment = services.tracker.read_run(context.run_id).experiment
    names = PAGES if (services.workspace.runs / context.run_id / "comparison").exists() else list(PAGES)[:2]
    links = {name: page.artifact_link(experiment, context.run_id, PAGES[name]) for name in names}
    links["the run"] = page.run_link(experiment, context.run_id)
    card = model_card(context.line, facts, decision or Decision(), links)
    services.registry.describe(context.line.line, version=version, text=card)
    services.tracker.set_tags(context.run_id, {page.NOTE: card})


def stamp_report(services: Services, run_id: str, version: int, decision: Decision) -> None:
    """Put version and decision at the top of a run's report, in the workspace and in MLflow.

    A run without a report, as after an update of csflow in the middle of it, is left as it is.
    """
    with tempfile.TemporaryDirectory(prefix="csflow-report.") as scratch:
        try:
            report = services.tracker.fetch_artifact(run_id, PAGES["report"], Path(scratch))
        except RegistryError:
            return
        local = services.workspace.runs / run_id / PAGES["report"]
        for copy in (report, local):
            if copy.exists():
                write_verdict(copy, version=version, outcome=decision.outcome, reason=decision.reason)
        services.tracker.log_artifact(run_id, report, folder="report")
