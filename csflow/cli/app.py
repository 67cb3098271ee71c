"""The tour: which commands there are, grouped by what people do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from csflow import __version__
from csflow.cli.ablate import ablate
from csflow.cli.choose import choose
from csflow.cli.compare import compare
from csflow.cli.compile import compile_pipeline
from csflow.cli.data import data_app
from csflow.cli.demo import demo
from csflow.cli.doctor import doctor
from csflow.cli.endpoint import endpoint
from csflow.cli.estimate import estimate
from csflow.cli.evaluate import evaluate
from csflow.cli.export import export
from csflow.cli.import_ import import_app
from csflow.cli.lines import lines
from csflow.cli.promote import promote
from csflow.cli.prune import prune
from csflow.cli.reconcile import reconcile
from csflow.cli.rollback import rollback
from csflow.cli.run import run
from csflow.cli.schedule import schedule
from csflow.cli.score import score
from csflow.cli.serve import serve
from csflow.cli.status import status
from csflow.cli.submit import submit
from csflow.cli.synthesize import synthesize
from csflow.cli.why import why
from csflow.system.project import PROJECT

app = typer.Typer(
    help="Learn what good parts look like, and find the ones that are not.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BRING, TRAIN, JUDGE = "Bring data in", "Train", "Judge"
RELEASE, SERVE, OPERATE = "Release", "Serve", "Operate"

app.add_typer(import_app, name="import", rich_help_panel=BRING)
app.add_typer(data_app, name="data", rich_help_panel=BRING)
app.command(rich_help_panel=BRING)(synthesize)
app.command(rich_help_panel=TRAIN)(run)
app.command(rich_help_panel=TRAIN)(demo)
app.command(rich_help_panel=TRAIN)(estimate)
app.command(rich_help_panel=TRAIN)(ablate)
app.command(rich_help_panel=TRAIN)(choose)
app.command(rich_help_panel=JUDGE)(score)
app.command(rich_help_panel=JUDGE)(evaluate)
app.command(rich_help_panel=JUDGE)(compare)
app.command(rich_help_panel=JUDGE)(why)
app.command(rich_help_panel=RELEASE)(promote)
app.command(rich_help_panel=RELEASE)(rollback)
app.command(rich_help_panel=RELEASE)(reconcile)
app.command(rich_help_panel=SERVE)(serve)
app.command(rich_help_panel=SERVE)(endpoint)
app.command(rich_help_panel=SERVE)(export)
app.command(rich_help_panel=OPERATE)(lines)
app.command("compile", rich_help_panel=OPERATE)(compile_pipeline)
app.command(rich_help_panel=OPERATE)(submit)
app.command(rich_help_panel=OPERATE)(schedule)
app.command(rich_help_panel=OPERATE)(status)
app.command(rich_help_panel=OPERATE)(prune)
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
            help=f"Folder with lines/ and pipelines/.  [default: {PROJECT}, else upwards from the current folder]",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if project is not None:
        os.environ[PROJECT] = str(project.expanduser().absolute())
