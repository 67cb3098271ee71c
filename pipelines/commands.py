"""The commands for a cluster: ``compile``, ``submit``, ``schedule``, ``status``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from csflow.config import line_names, lines_folder, load_line
from csflow.errors import ConfigError, UsageError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from pipelines.schedules import Change
    from pipelines.status import LineStatus, Report

LineArgument = Annotated[str, typer.Argument(help="Name of a line, or the path of its YAML file.")]
AccountOption = Annotated[
    str | None,
    typer.Option(
        "--service-account",
        envvar="CSFLOW_SERVICE_ACCOUNT",
        help="Service account of the steps' pods.  [default: the server's]",
    ),
]
_EXIT_FAILED = 1


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command("compile")(compile_pipeline)
    app.command()(submit)
    app.command()(schedule)
    app.command()(status)


def compile_pipeline(
    graph: Annotated[Literal["retrain", "ablate"], typer.Argument(help="Which pipeline.")] = "retrain",
    output: Annotated[Path | None, typer.Option(help="Where to write the IR YAML.  [default: GRAPH.yaml]")] = None,
    image: Annotated[str | None, typer.Option(help="Image that every step runs in.")] = None,
    line: Annotated[str | None, typer.Option(help="Line whose resources the steps ask for.")] = None,
) -> None:
    """Write a pipeline as IR YAML for a Kubeflow Pipelines server."""
    if image is not None:
        # Components read their image when they are defined, which is at import.
        os.environ["CSFLOW_IMAGE"] = image
    from csflow.system.files import write_atomic
    from pipelines.package import compiled
    from pipelines.placement import placement_of

    target = output or Path(f"{graph}.yaml")
    package = compiled(graph, placement_of(load_line(line) if line else None))
    write_atomic(target, package.text)
    typer.echo(f"Wrote {target}, version {package.version}")


def submit(
    line: LineArgument,
    force: Annotated[bool, typer.Option(help="Train again from another seed even if nothing changed.")] = False,
    if_changed: Annotated[
        bool, typer.Option("--if-changed", help="Only if the line's images are not those of its champion.")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Pods that extract features at once.  [default: resources.shards]"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run; exit 1 if it fails.")] = False,
    account: AccountOption = None,
) -> None:
    """Start a run of a line's retraining pipeline on the Kubeflow Pipelines server of CSFLOW_KFP_URL."""
    from pipelines import submission
    from pipelines.server import Server

    if force and if_changed:
        raise UsageError("--force trains whether or not anything changed, --if-changed only if it did. Give one.")
    config = load_line(line)
    submission.require_reachable(config)
    if if_changed:
        from csflow.runs.unchanged import unchanged_since_champion

        if same := unchanged_since_champion(config, Services.from_environment()):
            typer.echo(f"Nothing submitted: {same}.")
            return
    server = Server.from_environment()
    run = submission.submit(server, config, force=force, shards=shards, account=account)
    typer.echo(f"Submitted {run.name}: {server.url}/#/runs/details/{run.id}")
    if not wait:
        return
    ended = submission.wait(server, run, say=typer.echo)
    if ended.state != "SUCCEEDED":
        typer.echo(f"Error: {ended.name} ended as {ended.state.lower()}. {ended.error}".rstrip(), err=True)
        raise typer.Exit(_EXIT_FAILED)


def schedule(
    line: Annotated[str | None, typer.Argument(help="Name of a line, or the path of its YAML file.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All lines; schedules of lines that are no longer there are deleted.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change it without asking.")] = False,
    account: AccountOption = None,
) -> None:
    """Bring the server's recurring runs in line with the `schedule:` blocks; run it again whenever they change.

    Kubeflow Pipelines runs in UTC: what shall keep its local time is scheduled again when daylight saving changes.
    Running this every day does both.
    """
    if (line is None) != everything:
        raise UsageError("Give the name of one line, or --all.")
    names = [line] if line else line_names()
    if not names:
        raise ConfigError(f"No YAML files in {lines_folder()}. Run from the project's folder or set CSFLOW_LINES.")
    from pipelines import scheduling
    from pipelines.api import NoServerError
    from pipelines.schedules import plan
    from pipelines.server import Server

    now = datetime.now(UTC)
    configs = [load_line(name) for name in names]
    wanted, packages = scheduling.wanted_of(configs, now, account)
    lines = frozenset(config.line for config in configs)
    try:
        server = Server.from_environment()
        found = server.recurring_runs()
    except NoServerError as error:
        if not dry_run:
            raise
        typer.echo(f"{error}\nThis is what is wanted, compared with nothing:")
        _show(plan(wanted, [], lines=lines, everything=False), now)
        return
    changes = plan(wanted, found, lines=lines, everything=everything)
    _show(changes, now)
    todo = [change for change in changes if change.steps]
    if not todo:
        typer.echo("Nothing to change.")
    elif not dry_run:
        if not yes:
            typer.confirm(f"Change {len(todo)} of {len(changes)} at {server.url}?", abort=True)
        scheduling.apply(server, todo, packages, typer.echo)


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show of every line its last run, what came of it, champion, endpoint and next run."""
    from pipelines.server import Server
    from pipelines.status import report

    names = line_names()
    if not names:
        raise ConfigError(f"No YAML files in {lines_folder()}. Run from the project's folder or set CSFLOW_LINES.")
    found = report(names, Services.from_environment(), Server.from_environment, datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print(found)


def _show(changes: Sequence[Change], now: datetime) -> None:
    from pipelines.scheduling import describe

    for change in changes:
        for text in describe(change, now):
            typer.echo(text)
    if not changes:
        typer.echo("No line has a schedule.")


def _print(found: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("line", "last run", "outcome", "champion", "endpoint", "next run (UTC)")
    for row in found.lines:
        table.add_row(row.line, *_cells(row))
    console = Console()
    console.print(table)
    for note in found.notes:
        console.print(note, markup=False, style="yellow")
    for row in found.lines:
        for note in row.notes:
            console.print(f"{row.line}: {note}", markup=False, style="yellow")


def _cells(row: LineStatus) -> tuple[str, ...]:
    last = f"{row.last_run} {(row.last_run_at or '').removesuffix('+00:00')}".strip() if row.last_run else "-"
    champion = "-" if row.champion is None else str(row.champion)
    return last, row.outcome or "-", champion, row.endpoint or "-", (row.next_run or "-").removesuffix("+00:00")
