"""``csflow schedule``: set the recurring runs of a Kubeflow Pipelines server according to the lines' YAML."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from csflow.cli.options import AccountOption, JsonOption, print_json, require_line_names
from csflow.errors import UsageError
from csflow.system.project import project_module


def schedule(
    line: Annotated[str | None, typer.Argument(metavar="LINE", help="Name of a line, or its YAML file.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All lines; schedules of lines that are gone are deleted.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change it without asking.")] = False,
    account: AccountOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the server's recurring runs in line with the `schedule:` blocks of the YAML files.

    Run it again whenever they change. Kubeflow Pipelines uses UTC: to keep a local time, runs have to be scheduled
    again when daylight saving time changes. It is enough to run this command every day.
    """
    from csflow.config import load_line

    if (line is None) != everything:
        raise UsageError("Give the name of one line, or --all.")
    if as_json and not (dry_run or yes):
        raise UsageError("With --json nobody can be asked: give --dry-run or --yes too.")
    configs = [load_line(name) for name in ([line] if line else require_line_names())]
    now = datetime.now(UTC)
    scheduling, schedules = project_module("pipelines.scheduling"), project_module("pipelines.schedules")
    wanted, packages = scheduling.wanted_of(configs, now, account)
    lines = frozenset(config.line for config in configs)
    try:
        server = project_module("pipelines.server").Server.from_environment()
        found = server.recurring_runs()
    except project_module("pipelines.api").NoServerError as error:
        if not dry_run:
            raise
        typer.echo(f"{error}\nThis is the plan for an empty server:", err=as_json)
        _show(schedules.plan_changes(wanted, [], lines=lines, everything=False), now, as_json)
        return
    changes = schedules.plan_changes(wanted, found, lines=lines, everything=everything)
    _show(changes, now, as_json)
    todo = [change for change in changes if change.steps]
    if not todo:
        typer.echo("Nothing to change.", err=as_json)
    elif not dry_run:
        if not yes:
            typer.confirm(f"Change {len(todo)} of {len(changes)} at {server.url}?", abort=True)
        scheduling.apply_changes(server, todo, packages, lambda text: typer.echo(text, err=as_json))


def _show(changes: list[Any], now: datetime, as_json: bool) -> None:
    describe = project_module("pipelines.scheduling").describe
    texts = [text for change in changes for text in describe(change, now)]
    if as_json:
        print_json([{"line": change.line, "changes": bool(change.steps), "plan": list(describe(change, now))}
                    for change in changes])  # fmt: skip
        return
    for text in texts:
        typer.echo(text)
    if not changes:
        typer.echo("No line has a schedule.")
