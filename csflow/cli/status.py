"""``csflow status``: show the state of every line on the cluster."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from csflow.cli.options import JsonOption, print_json, require_line_names
from csflow.runs.services import Services
from csflow.system.project import project_module
from csflow.system.tables import print_line, print_table


def show_status(as_json: JsonOption = False) -> None:
    """Show each line's last run on the cluster, its outcome, champion, endpoint and next run."""
    names = require_line_names()
    connect = project_module("pipelines.server").Server.from_environment
    found = project_module("pipelines.status").report(names, Services.from_environment(), connect, datetime.now(UTC))
    if as_json:
        print_json(asdict(found))
    else:
        _print(found)


def _print(found: Any) -> None:
    headers = ("line", "last run", "outcome", "champion", "endpoint", "next run (UTC)")
    print_table(headers, [(row.line, *_cells(row)) for row in found.lines])
    for note in found.notes:
        print_line(note, style="yellow")
    for row in found.lines:
        for note in row.notes:
            print_line(f"{row.line}: {note}", style="yellow")


def _cells(row: Any) -> tuple[str, ...]:
    last = f"{row.last_run} {(row.last_run_at or '').removesuffix('+00:00')}".strip() if row.last_run else "-"
    champion = "-" if row.champion is None else str(row.champion)
    return last, row.outcome or "-", champion, row.endpoint or "-", (row.next_run or "-").removesuffix("+00:00")
