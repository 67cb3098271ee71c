"""Collect the results of an ablation: tables, plots, copies of the rows, and MLflow artifacts."""

from __future__ import annotations

from pathlib import Path

from csflow.ablation.plan import PLAN, AblationPlan, read_plan
from csflow.ablation.rows import stored_row
from csflow.ablation.summaries import VariantSummary, summarise_variants
from csflow.runs.services import Services
from csflow.system.files import write_atomic, write_json
from csflow.system.progress import say
from csflow.system.workspace import Workspace

TABLE, PLOT, ROC, ROWS = "table", "pareto.png", "roc-", "rows"
"""Files in the folder of an ablation: the table as CSV, Markdown and HTML, one picture of ROC curves per group."""


def collect(folder: Path, services: Services) -> Path:
    """Write tables, plots and copies of the rows, and attach them to the ablation's MLflow run.

    Returns:
        The folder.
    """
    from csflow.ablation.figure import roc_figures, tradeoff_figure
    from csflow.reporting.figures import png

    plan, summaries = read_results(folder, services.workspace)
    own = [summary for summary in summaries if summary.variant.line.line == plan.line.line]
    write_atomic(folder / PLOT, png(tradeoff_figure(own)))
    curves = {f"{ROC}{group}.png": png(figure) for group, figure in roc_figures(own).items()}
    for name, picture in curves.items():
        write_atomic(folder / name, picture)
    write_tables(folder, services.workspace)  # now with the pictures in the page
    for name in (*(f"{TABLE}.{kind}" for kind in ("csv", "md", "html")), PLOT, *curves, PLAN, ROWS):
        services.tracker.log_artifact(plan.run_id, folder / name)
    failed = sum(1 for summary in summaries if summary.errors)
    services.tracker.log_metrics(plan.run_id, {"variants": float(len(summaries)), "failed": float(failed)})
    services.tracker.finish(plan.run_id, f"{len(summaries) - failed} of {len(summaries)} variants measured")
    say(f"ablate: {len(summaries)} variants, of which {failed} failed; see {folder / f'{TABLE}.html'}")
    return folder


def write_tables(folder: Path, workspace: Workspace) -> None:
    """Write the tables of everything measured so far, and a copy of every row that they show."""
    from csflow.ablation.table import to_csv, to_html, to_markdown

    plan, summaries = read_results(folder, workspace)
    rows = {f"{row.key}.json": row for summary in summaries for row in summary.rows}
    for name, row in rows.items():
        write_json(folder / ROWS / name, row.model_dump(mode="json"))
    for file in (folder / ROWS).glob("*.json"):
        if file.name not in rows:  # left by a measurement that was interrupted
            file.unlink()
    plot = folder / PLOT
    curves = {file.stem.removeprefix(ROC): file.read_bytes() for file in sorted(folder.glob(f"{ROC}*.png"))}
    title = f"Ablation of {plan.line.line}"
    write_atomic(folder / f"{TABLE}.csv", to_csv(summaries))
    write_atomic(folder / f"{TABLE}.md", to_markdown(title, summaries))
    page = to_html(title, summaries, plot.read_bytes() if plot.exists() else None, curves)
    write_atomic(folder / f"{TABLE}.html", page)


def read_results(folder: Path, workspace: Workspace) -> tuple[AblationPlan, list[VariantSummary]]:
    """Read the plan of an ablation and everything measured so far.

    Raises:
        DataError: If the folder has no plan, or a damaged one.
    """
    plan = read_plan(folder)
    rows = {key: row for key in plan.keys if (row := stored_row(workspace, key)) is not None}
    return plan, summarise_variants(plan.entries, rows)
