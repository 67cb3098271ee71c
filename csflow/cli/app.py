"""The tour: which commands there are, in the order in which one meets them."""

from __future__ import annotations

import typer

from csflow.cli.ablate import ablate
from csflow.cli.choose import choose
from csflow.cli.compare import compare
from csflow.cli.data import data_app
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
from csflow.cli.score import score
from csflow.cli.serve import serve
from csflow.cli.synthesize import synthesize
from csflow.cli.why import why

app = typer.Typer(
    help="Learn what good parts look like, find the ones that are not.\n\n"
    "Bring images in (import, data, synthesize, estimate), train with `python -m pipelines run LINE`, look at the "
    "result (score, evaluate, compare, why, lines), weigh variants (ablate, choose), run it (serve, export, promote, "
    "rollback, reconcile, endpoint, prune), ask for help (doctor).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DATA, _RESULT, _LIFE, _HELP = "1. Images in", "2. Look at a result", "3. Run it", "4. Help"

app.add_typer(import_app, name="import", rich_help_panel=_DATA)
app.add_typer(data_app, name="data", rich_help_panel=_DATA)
app.command(rich_help_panel=_DATA)(synthesize)
app.command(rich_help_panel=_DATA)(estimate)
app.command(rich_help_panel=_RESULT)(score)
app.command(rich_help_panel=_RESULT)(evaluate)
app.command(rich_help_panel=_RESULT)(compare)
app.command(rich_help_panel=_RESULT)(why)
app.command(rich_help_panel=_RESULT)(lines)
app.command(rich_help_panel=_RESULT)(ablate)
app.command(rich_help_panel=_RESULT)(choose)
app.command(rich_help_panel=_LIFE)(serve)
app.command(rich_help_panel=_LIFE)(export)
app.command(rich_help_panel=_LIFE)(promote)
app.command(rich_help_panel=_LIFE)(rollback)
app.command(rich_help_panel=_LIFE)(reconcile)
app.command(rich_help_panel=_LIFE)(endpoint)
app.command(rich_help_panel=_LIFE)(prune)
app.command(rich_help_panel=_HELP)(doctor)
