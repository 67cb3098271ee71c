"""List all commands, grouped by what people do with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from csflow import __version__
from csflow.cli.ablate import ablate_lines
from csflow.cli.check import check
from csflow.cli.choose import choose
from csflow.cli.compare import compare_runs
from csflow.cli.compile import compile_pipeline
from csflow.cli.data import data_app
from csflow.cli.demo import demo
from csflow.cli.doctor import doctor
from csflow.cli.endpoint import endpoint
from csflow.cli.estimate import estimate_run
from csflow.cli.evaluate import evaluate_detector
from csflow.cli.export import export
from csflow.cli.import_ import import_app
from csflow.cli.lines import lines
from csflow.cli.promote import promote_version
from csflow.cli.prune import prune
from csflow.cli.reconcile import reconcile_endpoint
from csflow.cli.restore import restore_registry
from csflow.cli.rollback import rollback_champion
from csflow.cli.run import run
from csflow.cli.schedule import schedule
from csflow.cli.score import score
from csflow.cli.serve import serve_lines
from csflow.cli.status import show_status
from csflow.cli.submit import submit
from csflow.cli.synthesize import synthesize
from csflow.cli.token import make_token
from csflow.cli.why import why
from csflow.system.project import PROJECT

app = typer.Typer(
    help="Learn what good parts look like, and find the defective ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph, so that the text fits every width
    context_settings={"help_option_names": ["-h", "--help"]},
)

BRING, TRAIN, JUDGE = "Bring data in", "Train", "Judge"
RELEASE, SERVE, OPERATE = "Release", "Serve", "Operate"

app.add_typer(import_app, name="import", rich_help_panel=BRING)
app.add_typer(data_app, name="data", rich_help_panel=BRING)
app.command(rich_help_panel=BRING)(synthesize)
app.command(rich_help_panel=TRAIN)(run)
app.command(rich_help_panel=TRAIN)(demo)
app.command(rich_help_panel=TRAIN)(check)
app.command("estimate", rich_help_panel=TRAIN)(estimate_run)
app.command("ablate", rich_help_panel=TRAIN)(ablate_lines)
app.command(rich_help_panel=TRAIN)(choose)
app.command(rich_help_panel=JUDGE)(score)
app.command("evaluate", rich_help_panel=JUDGE)(evaluate_detector)
app.command("compare", rich_help_panel=JUDGE)(compare_runs)
app.command(rich_help_panel=JUDGE)(why)
app.command("promote", rich_help_panel=RELEASE)(promote_version)
app.command("rollback", rich_help_panel=RELEASE)(rollback_champion)
app.command("reconcile", rich_help_panel=RELEASE)(reconcile_endpoint)
app.command("serve", rich_help_panel=SERVE)(serve_lines)
app.command("token", rich_help_panel=SERVE)(make_token)
app.command(rich_help_panel=SERVE)(endpoint)
app.command(rich_help_panel=SERVE)(export)
app.command(rich_help_panel=OPERATE)(lines)
app.command("compile", rich_help_panel=OPERATE)(compile_pipeline)
app.command(rich_help_panel=OPERATE)(submit)
app.command(rich_help_panel=OPERATE)(schedule)
app.command("status", rich_help_panel=OPERATE)(show_status)
app.command(rich_help_panel=OPERATE)(prune)
app.command("restore", rich_help_panel=OPERATE)(restore_registry)
app.command(rich_help_panel=OPERATE)(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"csflow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    project: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with lines/ and pipelines/.",
            show_default=f"{PROJECT}, else upwards from the current folder",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if project is not None:
        os.environ[PROJECT] = str(project.expanduser().absolute())
