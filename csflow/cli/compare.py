"""``csflow compare``: show the last runs of a line side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.config import KINDS, load_line
from csflow.errors import NotRegisteredError

if TYPE_CHECKING:
    from csflow.adapters.mlflow.runs import Run
    from csflow.adapters.mlflow.versions import Version

_ALWAYS = {"detector": "detector", "epochs": "training.epochs", "hidden width": "flow.hidden", "seed": "training.seed"}

_SECTIONS = {section for kind in KINDS.values() for section in kind.sections}
"""Sections of a line's YAML that only some kinds of detector read."""


@dataclass(frozen=True)
class RunColumn:
    """A column of the table, for one run; values that the run does not have are ``None`` or empty."""

    run_id: str
    started: str
    outcome: str
    version: int | None
    alias: str
    image_auroc: float | None
    image_auroc_interval: tuple[float, float] | None
    defects_found: float | None
    pixel_auroc: float | None
    threshold: float | None
    seconds: float
    error: str
    params: dict[str, str]


def compare_runs(
    line: Annotated[str, typer.Argument(metavar="LINE", help="The line.")],
    last: Annotated[int, typer.Option("--last", "-n", min=1, max=50, help="Number of runs, the newest first.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Show the last runs of a line side by side: results, versions and the parameters that differ."""
    from csflow.adapters.mlflow.versions import model_name
    from csflow.runs.line_state import read_recent_runs
    from csflow.runs.services import Services

    model_name(line)  # refuses a text that cannot be the name of a line
    try:
        runs = read_recent_runs(Services.from_environment(), line, limit=last)
    except NotRegisteredError:
        load_line(line)  # a mistyped name is more likely, and this error suggests the nearest one
        raise
    columns = [_column(run, version) for run, version in runs]
    if as_json:
        print_json([asdict(column) for column in columns])
    else:
        _print(line, columns)


def differing_params(columns: list[RunColumn]) -> dict[str, list[str]]:
    """Collect the parameters that are not the same in all runs, except those that are always shown.

    Returns:
        By parameter, its value in every run; ``-`` if the run, for instance an older one, does not have it.
    """
    names = sorted({name for column in columns for name in column.params} - set(_ALWAYS.values()))
    values = {name: [_setting(column, name) for column in columns] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _column(run: Run, version: Version | None) -> RunColumn:
    low, high = _interval_ends(run, version)
    return RunColumn(
        run_id=run.run_id,
        started=f"{run.started.astimezone():%Y-%m-%d %H:%M}",
        outcome=run.outcome,
        version=version.version if version else None,
        alias=", ".join(version.aliases) if version else "",
        image_auroc=run.metrics.get("image_auroc"),
        image_auroc_interval=None if low is None or high is None else (low, high),
        defects_found=_defects_found(run),
        pixel_auroc=run.metrics.get("pixel_auroc"),
        threshold=run.metrics.get("threshold"),
        seconds=run.seconds,
        error=run.tags.get("error", ""),
        params=dict(run.params),
    )


def _interval_ends(run: Run, version: Version | None) -> tuple[float | None, float | None]:
    """Return the ends of the AUROC's interval: of the version, or as csflow 0.5 and older logged it with the run."""
    names = ("image_auroc_low", "image_auroc_high")
    low, high = (version.number(name) if version else None for name in names)
    return (low, high) if low is not None else (run.metrics.get(names[0]), run.metrics.get(names[1]))


def _print(line: str, columns: list[RunColumn]) -> None:
    from csflow.system.tables import print_line, print_table

    rows = list(_rows(columns).items())
    last_of_results = len(rows) - 1
    rows += differing_params(columns).items()
    cells = [(name, *values) for name, values in rows]
    headers = ("run", *(column.run_id[:8] for column in columns))
    print_table(headers, cells, title=f"Runs of {line}, newest first", sections=[last_of_results])
    for column in columns:
        if column.error:
            print_line(f"{column.run_id[:8]} {column.outcome}: {column.error}")


def _rows(columns: list[RunColumn]) -> dict[str, list[str]]:
    rows = {
        "started": [column.started for column in columns],
        "outcome": [column.outcome for column in columns],
        "version": [_number(column.version, "d") for column in columns],
        "alias": [column.alias or "-" for column in columns],
        "image AUROC": [_number(column.image_auroc, ".4f") for column in columns],
        "  interval": [_interval(column.image_auroc_interval) for column in columns],
        "defects found": [_share(column.defects_found) for column in columns],
        "pixel AUROC": [_number(column.pixel_auroc, ".4f") for column in columns],
        "threshold": [_number(column.threshold, ".4f") for column in columns],
        "seconds": [_number(column.seconds, ".1f") for column in columns],
    }
    return rows | {label: [_setting(column, name) for column in columns] for label, name in _ALWAYS.items()}


def _setting(column: RunColumn, name: str) -> str:
    """Return a parameter of a run; ``-`` if its kind of detector does not read it, or an older run does not have it."""
    kind = KINDS.get(column.params.get("detector", ""))
    section = name.partition(".")[0]
    unread = kind is not None and section in _SECTIONS - set(kind.sections) and name != "training.seed"
    return "-" if unread else column.params.get(name, "-")


def _defects_found(run: Run) -> float | None:
    """Return the share of defective test images found at the threshold; csflow 0.5 and older logged the rest."""
    missed = run.metrics.get("miss_rate")
    return run.metrics.get("defects_found") if missed is None else 1.0 - missed


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"
