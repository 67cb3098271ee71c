"""Summarise a run: as ``summary.json`` for machines and as a table for people."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csflow.adapters.mlflow.page import runs_address
from csflow.adapters.mlflow.versions import model_name
from csflow.runs.context import RunContext
from csflow.runs.line_state import read_line_state
from csflow.runs.services import Services
from csflow.system.files import write_json
from csflow.system.workspace import Workspace

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves its page by default."""

OUTCOMES = {
    "promoted": "the new version is champion and served",
    "kept_worse": "the champion stays: the new version is worse",
    "kept_insufficient": "the champion stays: not enough evidence for the new version",
    "held": "the champion stays: a rollback holds it",
    "unchanged": "nothing changed since the last decision, champion stands",
}


@dataclass
class RunSummary:
    """The results of one run; if the outcome is ``unchanged``, those of the champion.

    Attributes:
        model_version: The version that this run registered, or the champion if it registered none.
        alias: ``champion`` if ``model_version`` is the champion, otherwise empty.
        champion_version: The version that is served.
        scores: The endpoint's answers for single images: image, label, score, decision.
        seconds: Duration of each step.
    """

    line: str
    outcome: str
    reason: str
    data_md5: str
    data_digest: str
    git_rev: str
    defects_found: str
    image_auroc: float | None
    image_auroc_interval: tuple[float, float] | None
    pixel_auroc: float | None
    threshold: float | None
    alpha: float | None
    promise: str
    model_name: str
    model_version: int
    alias: str
    champion_version: int | None
    endpoint: str | None
    report: str
    run_id: str
    experiment: str
    scores: list[dict[str, Any]] = field(default_factory=list)
    overlay: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def summarise_run(context: RunContext, outcome: str, services: Services) -> RunSummary:
    """Collect the results of a finished run from registry, tracker and endpoint.

    Raises:
        RegistryError: If the line has no registered version.
    """
    line = context.line.line
    state = read_line_state(services, line)
    champion, endpoint = state.champion, state.endpoint
    made = [v for v in services.registry.versions(line) if v.tags.get("content_key") == context.content_key]
    version = champion if outcome == "unchanged" and champion else made[0]
    low, high = version.number("image_auroc_low"), version.number("image_auroc_high")
    run = services.tracker.read_run(context.run_id)
    report = services.workspace.runs / version.run_id / "report"
    return RunSummary(
        line=line,
        outcome=outcome,
        reason=made[0].tags.get("decision_reason", "") if made else "",
        data_md5=context.data_md5,
        data_digest=context.data_digest,
        git_rev=context.git_rev,
        defects_found=version.tags.get("defects_found", ""),
        image_auroc=version.number("image_auroc"),
        image_auroc_interval=None if low is None or high is None else (low, high),
        pixel_auroc=version.number("pixel_auroc"),
        threshold=version.number("threshold"),
        alpha=version.number("alpha"),
        promise=version.tags.get("promise", ""),
        model_name=model_name(line),
        model_version=version.version,
        alias="champion" if version.is_champion else "",
        champion_version=champion.version if champion else None,
        endpoint=endpoint.url if endpoint else None,
        report=str(report / "report.html"),
        run_id=context.run_id,
        experiment=run.experiment,
        seconds={name.removeprefix("seconds_"): s for name, s in run.metrics.items() if name.startswith("seconds_")},
    )


def write_summary(summary: RunSummary, workspace: Workspace) -> Path:
    """Write ``summary.json`` into the workspace and return its path."""
    path = workspace.root / "summary.json"
    write_json(path, asdict(summary))
    return path


def print_summary(summary: RunSummary, workspace: Workspace) -> None:
    """Print the summary as a table, the images that were judged, and commands to try next."""
    from csflow.system.tables import print_facts, print_line, print_table

    print_facts(_facts(summary), title=f"Product line {summary.line}")
    if summary.scores:
        rows = [(row["image"], row["label"], f"{row['score']:.4f}", row["decision"]) for row in summary.scores]
        right = ["green" if row["label"] == row["decision"] else "red" for row in summary.scores]
        print_table(("image", "label", "score", "decision"), rows, title="Scored over HTTP", styles=right)
    print_line(f"Report    {_short(summary.report)}")
    if summary.overlay:
        print_line(f"Overlay   {_short(summary.overlay)}")
    print_line(f"Facts     {_short(str(workspace.root / 'summary.json'))}")
    print_line("Try next", style="bold")
    for command, purpose in _next_commands(summary, workspace):
        print_line(f"  {command:<58} {purpose}")


def _facts(summary: RunSummary) -> list[tuple[str, str]]:
    interval = summary.image_auroc_interval
    between = f"   (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    champion = f"version {summary.champion_version}" if summary.champion_version else "none"
    return [
        ("outcome", f"{summary.outcome}: {OUTCOMES.get(summary.outcome, '')}"),
        ("because", summary.reason or "-"),
        ("defects found", summary.defects_found or "-"),
        ("image AUROC", f"{_percent(summary.image_auroc)}{between}"),
        ("pixel AUROC", _percent(summary.pixel_auroc)),
        ("threshold", f"{summary.threshold:.4f}" if summary.threshold is not None else "none"),
        ("it promises", summary.promise or "-"),
        ("model", f"{summary.model_name} version {summary.model_version} {summary.alias}".rstrip()),
        ("champion", champion),
        ("endpoint", summary.endpoint or "not running"),
        ("data", f"{summary.data_md5} at {summary.git_rev[:12]}"),
        ("seconds", "  ".join(f"{name} {seconds:.0f}" for name, seconds in summary.seconds.items())),
    ]


def _next_commands(summary: RunSummary, workspace: Workspace) -> list[tuple[str, str]]:
    line, csflow = summary.line, _program("csflow")
    return [
        (f"{csflow} run {line} --force", "train a challenger from another seed"),
        (f"{csflow} why {line}", "data, run, gate and decision behind the champion"),
        (f"{csflow} compare {line}", "all runs of the line side by side"),
        (f"{csflow} serve {line} --port 8080", "serve the champion, with a curl line to try"),
        *_runs_page(workspace.tracking_uri, summary.experiment),
    ]


def _runs_page(tracking_uri: str, experiment: str) -> list[tuple[str, str]]:
    """Return the address of the page with the runs, after the command that starts its server if there is none."""
    scheme, separator, path = tracking_uri.partition(":///")
    if not scheme.startswith("sqlite"):
        return [(runs_address(tracking_uri, experiment), "the same runs in the browser")]
    database = shlex.quote(_short(path, scheme + separator))
    return [
        (f"{_program('mlflow')} ui --backend-store-uri {database}", "then the same runs in the browser:"),
        (runs_address(_LOCAL_PAGE, experiment), ""),
    ]


def _program(name: str) -> str:
    """Return a program of this Python environment as it is typed here: its name if the shell finds it, or its path."""
    ours = Path(sys.executable).with_name(name)
    return name if shutil.which(name) == str(ours) else _short(str(ours))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _short(path: str, prefix: str = "") -> str:
    """Shorten a path below the current folder to its relative part."""
    here = Path.cwd()
    resolved = Path(path)
    return prefix + (str(resolved.relative_to(here)) if resolved.is_relative_to(here) else path)
