"""``csflow prune``: what no live version needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from csflow.errors import CacheError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.release.prune import Plan


def prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest versions of every line that stay in any case.")] = 5,
    older_than: Annotated[int, typer.Option(min=1, help="Days; whatever was made or used since then stays.")] = 7,
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed; without, nothing is changed.")] = False,
) -> None:
    """Show what nothing needs any more, and with --apply remove it; for all lines at once.

    That is: versions beyond the newest, with what was published of them; features that no remaining version was made
    from; fitted models and checkpoints of other trainings. In the workspace, in the store that CSFLOW_STORE names,
    and in the registry.

    A version stays if an alias or an endpoint names it, a rollback would go back to it, the gate measures challengers
    against it, or a hold names it. One store belongs to one registry.
    """
    from csflow.release import prune as steps

    services = Services.from_environment()
    made = steps.plan(services, steps.Policy.of(keep, older_than))
    _print(made)
    if apply and made.groups:
        typer.echo(f"removed {_size(steps.apply(services, made))}")
    elif made.groups:
        typer.echo("Nothing was changed. To remove what is listed: csflow prune --apply (with the same options)")
    if made.refusal:
        raise CacheError(made.refusal)


def _print(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "where", "number", "size", title="Not needed any more", title_justify="left")
    for group in made.groups:
        numbers = [str(version.version) for version in group.versions]
        count = f"{group.count} ({', '.join(numbers)})" if numbers else str(group.count)
        table.add_row(group.what, group.where, count, _size(group.bytes))
    table.add_section()
    table.add_row("in all", "", "", _size(made.bytes))
    console = Console()
    console.print(table)
    for line, versions in made.live.items():
        reasons = [f"{number} ({', '.join(why)})" for number, why in sorted(versions.items(), reverse=True)]
        console.print(f"{line} keeps {', '.join(reasons) or 'nothing'}", markup=False, soft_wrap=True)
    for note in made.notes:
        console.print(note, markup=False, soft_wrap=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
